"""The requests that `swiftclaw test failover` sends: plain POSTs at a steady rate, as many users would send them.

Every one is accounted for. The rate is kept whatever the answers do (an open loop), but for a bound on what is in flight.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle

import aiohttp

CLIENTS = 8  # each with connections of its own, so that every gateway of an address gets some
MOST_IN_FLIGHT = 1000
PATIENCE_S = 60.0  # for one answer
MESSAGE = "a probe of `swiftclaw test failover`"
NO_ANSWER = "no_answer"  # the only error name that is not the gateway's


@dataclass(frozen=True)
class Probe:
    """One request. Times in seconds since the take-away; before it they are negative."""

    began_s: float
    ended_s: float
    status: int = 200  # 0: no answer at all
    instance: str = ""  # who answered, if anybody said
    attempts: int = 1
    error: str = ""  # the error's name; "": it was answered
    message: str = ""

    @property
    def ok(self) -> bool:
        return not self.error

    def since(self, moment_s: float) -> Probe:
        """With its times counted from then."""
        return Probe(**{**vars(self), "began_s": self.began_s - moment_s, "ended_s": self.ended_s - moment_s})


class Probes:
    """`sent`, in the order of the answers, with times on the monotonic clock."""

    def __init__(self, addresses: list[str], agent: str, rate: float) -> None:
        self.sent: list[Probe] = []
        self.in_flight = 0
        self._urls = cycle([f"{address}/agents/{agent}/messages" for address in addresses])
        self._rate = rate

    async def run(self, enough: asyncio.Event) -> None:
        """Sends until `enough`, then waits for the answers that are still to come."""
        tasks: set[asyncio.Task[None]] = set()
        async with AsyncExitStack() as stack:
            clients = cycle([await stack.enter_async_context(_client()) for _ in range(CLIENTS)])
            due = time.monotonic()
            while not enough.is_set():
                if len(tasks) < MOST_IN_FLIGHT:
                    task = asyncio.create_task(self._one(next(clients), next(self._urls)))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                due = max(due + 1 / self._rate, time.monotonic() - 1)  # after a pause no burst of more than a second's
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*tasks)

    async def _one(self, client: aiohttp.ClientSession, url: str) -> None:
        began = time.monotonic()
        self.in_flight += 1
        try:
            async with client.post(url, json={"message": MESSAGE}) as response:
                body = await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            said = str(error) or type(error).__name__
            self.sent.append(Probe(began, time.monotonic(), 0, error=NO_ANSWER, message=said))
            return
        finally:
            self.in_flight -= 1
        named, message = _error(response.status, body)
        attempts = response.headers.get("x-swiftclaw-attempts", "1")
        self.sent.append(
            Probe(
                began, time.monotonic(), response.status, response.headers.get("x-swiftclaw-instance", ""),
                int(attempts) if attempts.isdecimal() else 1, named, message,
            )
        )  # fmt: skip


def _client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=False),  # its own cluster's certificate may be for another name
        cookie_jar=aiohttp.DummyCookieJar(),  # a new user each time
        timeout=aiohttp.ClientTimeout(total=PATIENCE_S),
    )


def _error(status: int, body: bytes) -> tuple[str, str]:
    """Its name and message; ("", "") for an answer."""
    if status < 400:
        return "", ""
    try:
        error = json.loads(body)["error"]
        return str(error["type"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return f"status_{status}", body[:100].decode("utf-8", "replace")
