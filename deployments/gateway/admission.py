"""Which requests does one gateway admit? The rate limits of every agent, as of the newest snapshot.

The agent's `rateLimit` counts every request to it. The rules of `@agent.rate_limit` count messages and chat requests, per
value of their key: a field of the body, and the header `x-<key>`. A request that has both counts with both, so that neither
bypasses the other; requests that have neither share one counter. Only the first 64 KiB of a message are read for it. No
await: deciding and counting are one step. The algorithms are in policies/rate_limit.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.messages import AgentView
from deployments.balancing.agents import AgentTable
from deployments.request.json_body import top_level
from deployments.request.record import READ_AHEAD, RequestRecord
from deployments.types import SentHeaders
from policies.errors import RateLimited
from policies.rate_limit import LIMITERS, Limiter, RateRule, TightestLimit, admit_all, headers, key_of

Read = Callable[[Collection[str]], Mapping[str, object]]  # names of fields -> their values in the body

NO_KEY = ""  # the key of requests without one, and of limits without a key
SWEPT = 2_000  # idle keys of one limit that one sweep removes at most


class AdmittedRequest(NamedTuple):
    """One admission, as it is reported to the other gateways."""

    agent: str
    limit: str
    key: str
    at: float


class _Limit:
    """One limiter in force. `name` is the same at every gateway."""

    def __init__(self, scope: str, rule: RateRule) -> None:
        self.key = rule.key
        self.header = None if rule.key is None else b"x-" + rule.key.lower().replace("_", "-").encode()
        self.scope, self.strategy, self.window_s = scope, rule.strategy, rule.window_s
        self.limiter: Limiter[Any] = LIMITERS[rule.strategy](rule.requests, rule.window_s, shared=True)

    @property
    def name(self) -> str:
        return f"{self.scope}/{self.strategy}/{self.window_s:g}"

    def update(self, rule: RateRule) -> None:
        """Change the limit; past admissions stay counted."""
        self.window_s = rule.window_s
        self.limiter.update(rule.requests, rule.window_s)

    def keys(self, record: RequestRecord, body: Mapping[str, object]) -> list[str]:
        if self.key is None:
            return [NO_KEY]
        given = [_text(body.get(self.key)), _header(record, self.header)]
        return list(dict.fromkeys(key for key in given if key != NO_KEY)) or [NO_KEY]


class _Agent:
    """One agent's limits: for `every` request, and the `rules` of its code."""

    def __init__(self, every: list[_Limit], rules: list[_Limit]) -> None:
        self.every, self.rules = every, rules
        self.all = [*every, *rules]
        self.wanted = frozenset(limit.key for limit in rules if limit.key is not None)


class RateLimits:
    """`clock`: seconds since the epoch that never go back, so that fixed windows begin together at every gateway."""

    def __init__(self, agents: AgentTable, clock: Callable[[], float] | None = None) -> None:
        self._agents = agents
        self._snapshot: object = None  # whose limits are in force
        self._limits: dict[str, _Agent] = {}
        offset_s = time.time() - time.monotonic()
        self.clock = clock or (lambda: time.monotonic() + offset_s)

    def admit(self, record: RequestRecord, agent: str, read: Read | None = None) -> None:
        """Count the request with every limit that applies, and add the rate-limit headers to its response.

        Raises RateLimited; then the request counts with none. `read`: for messages and chat requests, to which the rules of
        the agent's code apply as well.
        """
        record.agent = agent
        limits = self._of(agent)
        if limits is None:
            return
        tightest = admit_all(_asked(limits, record, read), self.clock())
        if tightest is None:
            return
        record.response_headers.extend(_headers(tightest))
        decision, limiter = tightest
        if not decision.allowed:
            key = next(limit.key for limit in limits.all if limit.limiter is limiter)
            allowed = f"{limiter.requests} requests per {limiter.window_s:g} s{f' for each {key}' if key else ''}"
            raise RateLimited(f"rate limit exceeded: {allowed}", agent=agent, retry_after_s=round(decision.retry_after_s, 6))

    def add_headers(self, record: RequestRecord) -> None:
        """The rate-limit headers for a request that was refused before it could be admitted."""
        limits = self._of(record.agent) if record.agent is not None and not record.response_headers else None
        if limits is None:
            return
        now = self.clock()
        looks = [(limit.limiter, limit.limiter.peek(NO_KEY, now)) for limit in limits.every or limits.rules]
        limiter, look = min(looks, key=lambda each: each[1].remaining)
        uncounted = look._replace(remaining=look.remaining + look.allowed)
        record.response_headers.extend(_headers(TightestLimit(uncounted, limiter)))

    def drain(self) -> list[AdmittedRequest]:
        """The admissions of this gateway since the last call."""
        return [
            AdmittedRequest(agent, limit.name, key, at)
            for agent, limits in self._limits.items()
            for limit in limits.all
            for key, at in limit.limiter.drain_admissions()
        ]

    def absorb(self, agent: str, limit: str, admitted: Mapping[str, Iterable[float]]) -> None:
        """Count the admissions of another gateway, times by key; ignored where that limit is not in force here."""
        limits, now = self._of(agent), self.clock()
        for own in limits.all if limits is not None else ():
            if own.name == limit:
                for key, times in admitted.items():
                    own.limiter.absorb(key, times, now)

    def sweep(self) -> None:
        """Remove idle keys; call now and then."""
        now = self.clock()
        for limits in self._limits.values():
            for limit in limits.all:
                limit.limiter.sweep(now, SWEPT)

    def _of(self, agent: str) -> _Agent | None:
        if self._snapshot is not self._agents.snapshot:
            self._sync()
        return self._limits.get(agent)

    def _sync(self) -> None:
        snapshot = self._snapshot = self._agents.snapshot
        previous, self._limits = self._limits, {}
        for name, view in snapshot.agents.items() if snapshot else ():
            before = previous.get(name)
            every = _renewed("all", _global(view), before.every if before else ())
            rules = _renewed("key", view.rate_rules, before.rules if before else ())
            if every or rules:
                self._limits[name] = _Agent(every, rules)


def in_message(prefix: bytes, wanted: Collection[str]) -> Mapping[str, object]:
    """Fields as the handler sees them (of duplicates the last), or from the part of a large body that was read."""
    return top_level(prefix[:READ_AHEAD], set(wanted))


def in_chat(body: Mapping[str, object], wanted: Collection[str]) -> Mapping[str, object]:
    """Fields as the handler sees them: from `metadata`, else from the body, where user and session are named `user`."""
    metadata = body.get("metadata")
    inner = metadata if isinstance(metadata, dict) else {}
    return {name: inner.get(name) or body.get("user" if name in ("user_id", "session_id") else name) for name in wanted}


def _asked(limits: _Agent, record: RequestRecord, read: Read | None) -> list[tuple[Limiter[Any], str]]:
    asked = [(limit.limiter, NO_KEY) for limit in limits.every]
    if read is not None and limits.rules:
        body = read(limits.wanted) if limits.wanted else {}
        asked += [(limit.limiter, key) for limit in limits.rules for key in limit.keys(record, body)]
    return asked


def _global(view: AgentView) -> tuple[RateRule, ...]:
    block = view.settings.rate_limit
    return (RateRule(block.requests, block.window_s, None, block.strategy),) if block.enabled else ()


def _renewed(kind: str, rules: Sequence[RateRule], before: Sequence[_Limit]) -> list[_Limit]:
    """One limit per rule. A limit of the same key and strategy is kept with its counts, preferably one of the same window.

    Of rules that differ only in the number of requests, the strictest applies.
    """
    strictest: dict[tuple[str, str, float], RateRule] = {}
    for rule in rules:
        identity = (_scope(kind, rule), rule.strategy, rule.window_s)
        if identity not in strictest or rule.requests < strictest[identity].requests:
            strictest[identity] = rule
    same = {
        identity: limit
        for identity in strictest
        for limit in before
        if identity == (limit.scope, limit.strategy, limit.window_s)
    }
    unused = [limit for limit in before if limit not in same.values()]
    renewed = []
    for identity, rule in strictest.items():
        limit = same.get(identity) or next((other for other in unused if (other.scope, other.strategy) == identity[:2]), None)
        if limit is None:
            limit = _Limit(identity[0], rule)
        else:
            unused = [other for other in unused if other is not limit]
            limit.update(rule)
        renewed.append(limit)
    return renewed


def _scope(kind: str, rule: RateRule) -> str:
    return kind if rule.key is None else f"{kind}:{rule.key}"


def _text(value: object) -> str:
    """A string, number or boolean as a key; lists and objects are none."""
    if isinstance(value, str):
        return key_of(value)
    return key_of(json.dumps(value)) if isinstance(value, bool | int | float) else NO_KEY


def _header(record: RequestRecord, wanted: bytes | None) -> str:
    """The last header of that name: a proxy appends its own."""
    for name, value in reversed(record.headers):
        if name == wanted:
            return key_of(value.decode("utf-8", "surrogateescape"))
    return NO_KEY


def _headers(tightest: TightestLimit) -> SentHeaders:
    """Without `Retry-After`, which belongs to the error."""
    decision, limiter = tightest
    fields = headers(decision, limiter.requests, limiter.window_s)
    return [(name.lower().encode(), value.encode()) for name, value in fields.items() if name != "Retry-After"]
