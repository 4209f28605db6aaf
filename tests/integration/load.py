"""Requests at a steady rate, and what became of each of them: nothing is left unaccounted for."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

log = logging.getLogger("tests.load")

RATE = 200.0
MOST_S = 120.0  # however long what happens meanwhile may take
REFUSED = {"rate_limited", "overloaded", "no_healthy_instance", "circuit_open", "unknown_agent", "bad_request"}  # not begun
FAILED = {"agent_error", "instance_failed", "request_timeout"}
NO_ANSWER = "no answer"  # no status at all, or an answer that ended early without a word


def note(figure: str) -> None:
    """What was measured; `pytest --log-cli-level=INFO` shows it."""
    log.info("%s", figure)


@dataclass
class Sent:
    """One request: when, who answered (if anybody said), with what."""

    began: float
    ended: float = 0.0
    status: int = 0  # 0: no answer at all
    instance: str = ""
    error: str = ""  # the answer, or why there is none; empty when it was answered in full
    kind: str = ""  # the error's type
    attempts: int = 1
    retry_after: str = ""
    text: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.error

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True)
class Account:
    """What became of all requests, by the name of the error."""

    ok: int
    refused: Counter[str]
    failed: Counter[str]
    no_answer: int

    def __str__(self) -> str:
        named = ", ".join(f"{count} {kind}" for kind, count in (self.refused + self.failed).most_common())
        return f"{self.ok} ok, {self.no_answer} without an answer" + (f", {named}" if named else "")


def account(sent: Iterable[Sent]) -> Account:
    """Every request in one of: ok, refused with a named error, failed with a named error, no answer."""
    everyone = list(sent)
    assert all(one.ended for one in everyone), "a request has no end"
    kinds = Counter(one.kind for one in everyone if not one.ok)
    unnamed = [one.error[:200] for one in everyone if not one.ok and one.kind not in REFUSED | FAILED | {NO_ANSWER}]
    assert not unnamed, f"answers that name no error: {unnamed[:3]}"
    return Account(
        sum(one.ok for one in everyone),
        Counter({kind: kinds[kind] for kind in REFUSED & kinds.keys()}),
        Counter({kind: kinds[kind] for kind in FAILED & kinds.keys()}),
        kinds[NO_ANSWER],
    )


@dataclass
class Load:
    """Requests at a steady rate, each on a connection of a pool. `stream`: as an event stream, read to its end."""

    url: str
    rate: float = RATE
    agent: str = "my-agent"
    body: dict[str, Any] = field(default_factory=lambda: {"message": "hi"})
    headers: dict[str, str] = field(default_factory=dict)
    stream: bool = False
    patience_s: float = 30.0  # of each client
    sent: list[Sent] = field(default_factory=list)
    began: float = 0.0

    async def run(self, seconds: float, then: Callable[[], Awaitable[object]] | None = None, at: float = 1.0) -> Account:
        """For `seconds`, or for as long as `then` takes, which is started once, `at` seconds after the start."""
        acting: asyncio.Task[object] | None = None
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(self.patience_s)) as client:
            tasks, number = [], 0
            self.began = time.monotonic()
            while (elapsed := number / self.rate) < seconds or (acting is not None and not acting.done() and elapsed < MOST_S):
                await asyncio.sleep(max(0, self.began + elapsed - time.monotonic()))
                if acting is None and then is not None and elapsed >= at:
                    acting = asyncio.ensure_future(then())
                tasks.append(asyncio.create_task(self.one(client)))
                number += 1
            await asyncio.gather(*tasks)
        if acting is not None:
            await acting
        assert len(self.sent) >= number
        return self.accounted()

    async def one(self, client: aiohttp.ClientSession) -> Sent:
        sent = Sent(time.monotonic())
        self.sent.append(sent)
        body = {**self.body, "stream": True} if self.stream else self.body
        try:
            async with client.post(f"{self.url}/agents/{self.agent}/messages", json=body, headers=self.headers) as response:
                sent.instance = response.headers.get("x-swiftclaw-instance", "")
                sent.attempts = int(response.headers.get("x-swiftclaw-attempts", 1))
                sent.retry_after = response.headers.get("retry-after", "")
                sent.status = response.status
                sent.text = (await response.read()).decode()
            self._judge(sent)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            sent.error, sent.kind = repr(error), NO_ANSWER
        sent.ended = time.monotonic()
        return sent

    def _judge(self, sent: Sent) -> None:
        said = sent.text
        if sent.status == 200 and self.stream:
            if said.endswith("data: [DONE]\n\n"):
                return
            sent.error, sent.kind = said, NO_ANSWER
            _, event, said = said.rpartition("event: error\ndata: ")
            if not event:
                return
        elif sent.status == 200:
            return
        sent.error = sent.text
        try:
            sent.kind = json.loads(said)["error"]["type"]
        except (ValueError, KeyError, TypeError):
            sent.kind = "unnamed"

    def accounted(self) -> Account:
        return account(self.sent)

    def failed(self) -> list[Sent]:
        return [sent for sent in self.sent if not sent.ok]

    def since(self, moment: float) -> list[Sent]:
        """Those that began after it."""
        return [sent for sent in self.sent if sent.began > moment]
