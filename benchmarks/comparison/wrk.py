"""Runs `wrk` with one POST request and parses its figures.

A closed loop: each connection sends its next request after the response, so a slow contender receives fewer requests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

MARK = "figures "
TIMEOUT_S = 10  # wrk counts an answer that takes longer as broken
DONE = f"""\
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{MARK}{{"us":%d,"requests":%d,"p50_us":%d,"p99_us":%d,"refused":%d,"broken":%d}}\\n',
    summary.duration, summary.requests, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
"""


class NoWrk(Exception):
    """`wrk` is missing; the text says how to install it."""


class WrongAnswer(Exception):
    """A contender's response is not what the benchmark expects of it, or `wrk` reported nothing; the text has both."""


@dataclass(frozen=True)
class Figures:
    """What one run of `wrk` saw."""

    seconds: float
    requests: int
    p50_ms: float
    p99_ms: float
    refused: int  # answers with a status of 400 or more
    broken: int  # connections that failed, broke off or timed out


def find_wrk() -> str:
    """Raises NoWrk."""
    found = shutil.which("wrk")
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "install", "--yes", "--quiet", "wrk"], check=False, stdout=subprocess.DEVNULL)
        found = shutil.which("wrk")
    if found is None:
        raise NoWrk("wrk, the load generator, is not installed: `sudo apt-get install wrk` (or your system's package)")
    return found


def run(
    wrk: str, url: str, body: bytes, *, connections: int, seconds: int, headers: Mapping[str, str] | None = None
) -> Figures:
    """POST the JSON `body` over so many connections, from one thread. Raises WrongAnswer."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(script_of(body, headers or {}))
        script.flush()
        command = [
            wrk, "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s",
            "--timeout", f"{TIMEOUT_S}s", "--script", script.name, url,
        ]  # fmt: skip
        said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    found = parse(said.stdout)
    if found is None:
        raise WrongAnswer(f"wrk said nothing of {url}: {said.stdout}{said.stderr}")
    return found


def script_of(body: bytes, headers: Mapping[str, str]) -> str:
    """The Lua script. `body` is JSON on one line, without a quote of Lua's long strings (`]]`)."""
    named = {"content-type": "application/json", **headers}
    lines = ['wrk.method = "POST"', f"wrk.body = [[{body.decode()}]]"]
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in named.items()]
    return "\n".join([*lines, DONE])


def parse(output: str) -> Figures | None:
    """The figures that the script printed; None if it printed none."""
    for line in output.splitlines():
        if line.startswith(MARK):
            found: dict[str, int] = json.loads(line[len(MARK) :])
            return Figures(
                found["us"] / 1e6,
                found["requests"],
                found["p50_us"] / 1e3,
                found["p99_us"] / 1e3,
                found["refused"],
                found["broken"],
            )
    return None
