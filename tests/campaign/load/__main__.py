"""`python -m tests.campaign.load --port P --out FILE …`: the load until SIGTERM, or for so long; its figures end on stdout."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from pathlib import Path

from tests.campaign.load.arrivals import ALL, WELL_BEHAVED, Arrivals, Traffic
from tests.campaign.record import Lines


async def run(arrivals: Arrivals) -> None:
    def stop() -> None:
        arrivals.stopped = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    await arrivals.run()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign.load", description="Requests of every kind at a steady rate."
    )
    parser.add_argument("--port", type=int, required=True, help="of the gateways")
    parser.add_argument("--out", type=Path, required=True, help="file of the record that gets a line for every request")
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefix", default="r", help="of every request's identity")
    parser.add_argument("--well-behaved", action="store_true", help="no clients that leave, stall, half-close or send garbage")
    words = parser.parse_args()
    traffic = Traffic(words.rate, words.seconds, words.seed, words.prefix, WELL_BEHAVED if words.well_behaved else ALL)
    arrivals = Arrivals(words.port, Lines(words.out), traffic)
    asyncio.run(run(arrivals))
    print(json.dumps({"sent": arrivals.sent, "lag": round(arrivals.lag, 3)}))


if __name__ == "__main__":
    main()
