"""Arrivals at a steady rate, whatever becomes of the requests before them: a slow answer makes no request wait to be sent."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.campaign.cluster import AGENT
from tests.campaign.load.answers import PIECES, classify, read_headers
from tests.campaign.load.http import FAILURES, Answer, Connection, request_bytes
from tests.campaign.load.misbehaving import KINDS as MISBEHAVING
from tests.campaign.load.misbehaving import MisbehavingClients
from tests.campaign.load.websocket import talk
from tests.campaign.record import Lines, Request

PATIENCE_S = 40.0  # a request that takes longer hangs
MOST_LATE_S = 0.5
TICK_S = 0.05
TURNS = 10  # of a conversation
CONVERSATION = "conversation"
WELL_BEHAVED = {  # how often each kind arrives; a conversation is TURNS requests
    "plain": 30.0, "keyed": 14.0, "app-get": 12.0, "app-put": 10.0, "app-post": 6.0, "chat": 5.0, "stream": 5.0, "ws": 3.0,
    CONVERSATION: 3.4,
}  # fmt: skip
ALL = WELL_BEHAVED | dict.fromkeys(MISBEHAVING, 1.0)
AFFINITY = ("cookie", "named-cookie", "header-cookie", "named")  # of the last, each gateway keeps the home by itself


@dataclass(frozen=True)
class Traffic:
    rate: float  # requests per second, those of conversations included
    seconds: float
    seed: int
    prefix: str  # of every identity
    shares: Mapping[str, float] = field(default_factory=lambda: ALL)
    pause_s: tuple[float, float] = (0.3, 2.0)  # between the turns of a conversation


class Arrivals:
    """Every request ends in one line of `out`. `sent`: how many have begun. `lag`: the most that one began late, seconds."""

    def __init__(self, port: int, out: Lines, traffic: Traffic) -> None:
        self._port, self._out, self._traffic = port, out, traffic
        self._rng = random.Random(traffic.seed)
        self._misbehaving = MisbehavingClients(port, self._rng)
        self._kept: list[Connection] = []
        self._number = 0
        self._paused = 0.0  # how long this process has not run though it was due, seconds
        self._paused_at: dict[str, float] = {}  # that at the begin of each request
        self.stopped = False  # no further request begins
        self.sent = 0
        self.lag = 0.0

    async def run(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        clock = asyncio.create_task(self._measure_pauses())
        ends, due, gap_s = time.monotonic() + self._traffic.seconds, time.monotonic(), self._gap_s()
        while not self.stopped and due < ends:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            late = time.monotonic() - due
            self.lag = max(self.lag, late)
            due += gap_s if late < MOST_LATE_S else late  # what a longer pause has missed is not sent all at once
            task = asyncio.create_task(self._arrival())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE_S + 20)
        clock.cancel()
        for connection in self._kept:
            connection.close()

    async def _measure_pauses(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK_S)
            self._paused += max(0.0, time.monotonic() - began - 2 * TICK_S)

    def _gap_s(self) -> float:
        requests = sum(share * (TURNS if kind == CONVERSATION else 1) for kind, share in self._traffic.shares.items())
        return requests / sum(self._traffic.shares.values()) / self._traffic.rate

    def _arrival(self) -> Coroutine[Any, Any, None]:
        kind = self._rng.choices(list(self._traffic.shares), list(self._traffic.shares.values()))[0]
        return self._conversation() if kind == CONVERSATION else self._one(self._request(kind))

    def _request(self, kind: str, **fields: Any) -> Request:
        self._number += 1
        self.sent += 1
        name, fresh = f"{self._traffic.prefix}{self._number}", self._rng.random() < 0.5
        self._paused_at[name] = self._paused
        return Request(name, kind, fresh=fresh, began=round(time.monotonic(), 4), **fields)

    def _end(self, request: Request) -> None:
        request.ended = round(time.monotonic(), 4)
        request.paused = round(self._paused - self._paused_at.pop(request.id), 3)
        self._out.write(request)

    # --- kinds ------------------------------------------------------------------------------------------------------

    async def _one(self, request: Request) -> None:
        work = round(self._rng.uniform(0.005, 0.06), 3)
        try:
            if request.kind in MISBEHAVING:
                await self._misbehaving.send(request)
            elif request.kind == "ws":
                uri = f"ws://127.0.0.1:{self._port}/agents/{AGENT}/talk/{request.id}"
                await asyncio.wait_for(talk(request, uri), PATIENCE_S)
            elif request.kind.startswith("app-"):
                await self._item(request, work)
            else:
                await self._message(request, work)
        except asyncio.TimeoutError:
            request.outcome = "hang"
        finally:
            self._end(request)

    async def _item(self, request: Request, work: float) -> None:
        method = request.kind.removeprefix("app-").upper()
        body = None if method == "GET" else request.id.encode()
        await self._http(request, method, f"/agents/{AGENT}/items/{request.id}?work={work}", {}, body)

    async def _message(self, request: Request, work: float) -> None:
        message: dict[str, Any] = {"id": request.id, "kind": request.kind, "work": work}
        if request.kind == "chat":
            content: dict[str, Any] = {"model": AGENT, "messages": [{"role": "user", "content": json.dumps(message)}]}
            await self._http(request, "POST", "/v1/chat/completions", {}, json.dumps(content).encode())
            return
        content = {"message": message}
        if request.kind == "stream":
            message |= {"pieces": PIECES, "gap": 0.2}
            content["stream"] = True
        headers = {"idempotency-key": request.id} if request.kind == "keyed" else {}
        await self._http(request, "POST", f"/agents/{AGENT}/messages", headers, json.dumps(content).encode())

    async def _conversation(self) -> None:
        """Turns one after the other, each with what the one before it brought: the cookie."""
        self._number += 1
        name, affinity, cookie = f"{self._traffic.prefix}c{self._number}", self._rng.choice(AFFINITY), ""
        for turn in range(1, TURNS + 1):
            if self.stopped:
                return
            request = self._request("turn", conversation=name, turn=turn, affinity=affinity)
            content: dict[str, Any] = {"message": {"id": request.id, "kind": "turn", "conversation": name, "work": 0.02}}
            headers = {}
            if affinity in ("named-cookie", "named"):
                content["session_id"] = name
            if affinity == "header-cookie":
                headers["x-session-id"] = name
            if cookie and affinity != "named":
                headers["cookie"] = cookie
            try:
                answer = await self._http(request, "POST", f"/agents/{AGENT}/messages", headers, json.dumps(content).encode())
            finally:
                self._end(request)
            cookie = answer.headers.get("set-cookie", cookie).split(";")[0]
            await asyncio.sleep(self._rng.uniform(*self._traffic.pause_s))

    # --- one exchange -----------------------------------------------------------------------------------------------

    async def _connect(self, fresh: bool) -> Connection:
        while self._kept and not fresh:
            connection = self._kept.pop(self._rng.randrange(len(self._kept)))
            if connection.reusable:
                return connection
            connection.close()
        return await Connection.open(self._port)

    async def _http(self, request: Request, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
        """What became of it is in the request."""
        request.method, request.repeatable = method, method != "POST" or "idempotency-key" in headers
        payload = request_bytes(method, path, {"x-request-id": request.id, **headers}, body)
        answer = Answer()
        try:
            try:
                await asyncio.wait_for(self._exchange(request, payload, answer), PATIENCE_S)
            finally:
                read_headers(request, answer)
            classify(request, answer)
        except asyncio.TimeoutError:
            request.outcome = "hang"
        except FAILURES as error:
            request.outcome, request.message = "broken", f"{type(error).__name__}: {error}"
        if request.kind == "stream":
            request.longest_gap = round(answer.longest_gap, 3)
        return answer

    async def _exchange(self, request: Request, payload: bytes, answer: Answer) -> None:
        connection = await self._connect(request.fresh)
        request.fresh, request.client_port = connection.fresh, connection.port
        kept = False
        try:
            await connection.exchange(payload, answer)
            kept = answer.headers.get("connection") != "close" and not (request.fresh and self._rng.random() < 0.5)
        finally:
            if kept:
                self._kept.append(connection)
            else:
                connection.close()
