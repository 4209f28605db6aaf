"""The requests that `swiftclaw test failover` sends: plain POSTs at a steady rate, like those of many users.

Every request is recorded. The rate does not depend on the responses (an open loop), up to a limit of requests in flight.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle

import aiohttp

CLIENTS = 8  # each with its own connections, so that every gateway behind an address receives some
MOST_IN_FLIGHT = 1000
TIMEOUT_S = 60.0  # for one response
MESSAGE = "a probe of `swiftclaw test failover`"
NO_ANSWER = "no_answer"  # the only error type that does not come from the gateway


@dataclass(frozen=True)
class Probe:
    """One request. Times in seconds since the instance was taken out; negative before that."""

    began_s: float
    ended_s: float
    status: int = 200  # 0: no response
    instance: str = ""  # the instance that answered; "": unknown
    attempts: int = 1
    error: str = ""  # the error type; "": success
    message: str = ""

    @property
    def ok(self) -> bool:
        return not self.error

    def since(self, start_s: float) -> Probe:
        """The same with times counted from `start_s`."""
        return Probe(**{**vars(self), "began_s": self.began_s - start_s, "ended_s": self.ended_s - start_s})


class Probes:
    """Sends requests. `sent`: the finished ones, in the order of their responses, with times on the monotonic clock."""

    def __init__(self, addresses: list[str], agent: str, rate: float) -> None:
        self.sent: list[Probe] = []
        self.in_flight = 0
        self._urls = cycle([f"{address}/agents/{agent}/messages" for address in addresses])
        self._rate = rate

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set, then wait for the outstanding responses."""
        tasks: set[asyncio.Task[None]] = set()
        async with AsyncExitStack() as stack:
            clients = cycle([await stack.enter_async_context(_client()) for _ in range(CLIENTS)])
            due = time.monotonic()
            while not stop.is_set():
                if len(tasks) < MOST_IN_FLIGHT:
                    task = asyncio.create_task(self._one(next(clients), next(self._urls)))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                due = max(due + 1 / self._rate, time.monotonic() - 1)  # after a pause, catch up on one second at most
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*tasks)

    async def _one(self, client: aiohttp.ClientSession, url: str) -> None:
        began = time.monotonic()
        self.in_flight += 1
        try:
            async with client.post(url, json={"message": MESSAGE}) as response:
                body = await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            message = str(error) or type(error).__name__
            self.sent.append(Probe(began, time.monotonic(), 0, error=NO_ANSWER, message=message))
            return
        finally:
            self.in_flight -= 1
        error_type, message = _error(response.status, body)
        attempts = response.headers.get("x-swiftclaw-attempts", "1")
        self.sent.append(
            Probe(
                began, time.monotonic(), response.status, response.headers.get("x-swiftclaw-instance", ""),
                int(attempts) if attempts.isdecimal() else 1, error_type, message,
            )
        )  # fmt: skip


def _client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=False),  # the certificate may be for another name than this address
        cookie_jar=aiohttp.DummyCookieJar(),  # every request is a new user
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
    )


def _error(status: int, body: bytes) -> tuple[str, str]:
    """(type, message) of the error; ("", "") for a success."""
    if status < 400:
        return "", ""
    try:
        error = json.loads(body)["error"]
        return str(error["type"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return f"status_{status}", body[:100].decode("utf-8", "replace")
