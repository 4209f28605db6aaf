"""How do gateways agree on where each session lives? What each has placed or moved travels to every other one.

A new or moved home is sent at once, while the instance works on its request, and the answer waits until the other gateways
have it (SETTLE_S at most, and not for a peer that does not answer): a client that has its answer meets the same home at every
gateway. A gateway that starts receives all homes before it opens the public port. Which home wins when two gateways have
placed one session differently: policies/sessions/homes.py. Peers carries the messages (deployments/gateway/peers.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from sys import intern
from typing import Any, NamedTuple

from deployments.balancing.agents import AgentTable
from deployments.gateway.homes_file import HomesFile
from policies.sessions.homes import HomeChange, SessionHome

SETTLE_S = 0.25
BATCH = 5_000  # homes in one message
BATCH_CHARACTERS = 200_000  # of their sessions' names: clients choose them, and the receiver bounds the message


class _Entry(NamedTuple):
    agent: str
    change: HomeChange
    queued_at: float  # monotonic: the idle time grows while it waits


class HomesLink:
    """The homes on their way to one peer. `lost`: it did not receive the last message, so no answer waits for it."""

    def __init__(self, entries: Iterable[_Entry] = ()) -> None:
        self._backlog = deque(entries)
        self._batch: list[_Entry] = []
        self._queued = len(self._backlog)
        self._received = 0
        self._initial = self._queued  # what it needs to have caught up
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._greeted = False
        self.lost = False

    def __repr__(self) -> str:
        state = "lost" if self.lost else "connected"
        return f"<HomesLink {state}: {self._queued - self._received} of {self._queued} homes not received>"

    @property
    def pending(self) -> bool:
        """There is something to send; to a new peer also that there are no homes."""
        return bool(self._batch or self._backlog) or not self._greeted

    @property
    def caught_up(self) -> bool:
        """With the message that is being sent, the peer has everything that there was when the link was made."""
        return self._received + len(self._batch) >= self._initial

    def add(self, entries: Sequence[_Entry]) -> None:
        self._backlog.extend(entries)
        self._queued += len(entries)

    def batch(self, now: float) -> list[list[Any]]:
        """The rows for the next message; the same ones again until they are received."""
        if not self._batch:
            characters = 0
            while self._backlog and len(self._batch) < BATCH and characters < BATCH_CHARACTERS:
                self._batch.append(entry := self._backlog.popleft())
                characters += len(entry.change.session)
        return [_row(entry, now) for entry in self._batch]

    def received(self) -> None:
        self._received += len(self._batch)
        self._batch, self.lost, self._greeted = [], False, True
        self._wake(lambda needed: needed <= self._received)

    def failed(self) -> None:
        self.lost = True
        self._wake(lambda _: True)

    def settled(self) -> asyncio.Future[None] | None:
        """Done when the peer has all that is queued now; None: it has, or is lost."""
        if self.lost or self._received >= self._queued:
            return None
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((self._queued, future))
        return future

    def _wake(self, done: Any) -> None:
        waiting, self._waiting = self._waiting, []
        for needed, future in waiting:
            if not done(needed):
                self._waiting.append((needed, future))
            elif not future.done():
                future.set_result(None)


class SessionExchange:
    """One gateway's side of it."""

    def __init__(self, agents: AgentTable) -> None:
        self._agents = agents
        self._links: dict[str, HomesLink] = {}
        self._caught_up: set[str] = set()
        self._progress = asyncio.Event()
        self._file: HomesFile | None = None

    def link(self, peer: str, now: float) -> HomesLink:
        """A link to a peer that is new, with every home that is known here."""
        self._links[peer] = made = HomesLink(_Entry(agent, change, now) for agent, change in self._everything(now))
        return made

    def unlink(self, peer: str) -> None:
        link = self._links.pop(peer, None)
        if link is not None:
            link.failed()

    def collect(self, now: float) -> bool:
        """Queue what has changed here for every peer. Returns whether there was anything."""
        entries = [
            _Entry(agent, change, now)
            for agent, pool in self._agents.pools.items()
            if pool.sessions is not None and pool.sessions.homes.has_changes
            for change in pool.sessions.homes.changes(now)
        ]
        for link in self._links.values():
            link.add(entries)
        if self._file is not None and entries:
            self._file.append([_kept(entry.agent, entry.change) for entry in entries])
            if self._file.is_due(self._known()):
                self._file.rewrite([_kept(*entry) for entry in self._everything(now)])
        return bool(entries)

    async def recover(self, file: HomesFile) -> None:
        """Take over what ended gateways of this node knew, after `catch_up`, and keep all homes in `file` from now on."""
        taken = []
        for path, rows in file.orphans():
            for start in range(0, len(rows), BATCH):
                self._recover(rows[start : start + BATCH])
                await asyncio.sleep(0)  # the loop has other work
            taken.append(path)
        self._file = file
        file.rewrite([_kept(*entry) for entry in self._everything(time.monotonic())])
        await file.rewritten()
        for path in taken:
            path.unlink(missing_ok=True)

    def _recover(self, rows: Sequence[Sequence[Any]]) -> None:
        now = time.monotonic()
        for agent, session, instance, replica, version, moves, placed_at, used_at in rows:
            pool = self._agents.pools.get(agent)
            if pool is not None and pool.sessions is not None:
                home = SessionHome(intern(instance), intern(replica), intern(version), moves, placed_at)
                pool.sessions.homes.recover(HomeChange(session, home, now - used_at), now)

    def _known(self) -> int:
        return sum(len(pool.sessions.homes) for pool in self._agents.pools.values() if pool.sessions is not None)

    def _everything(self, now: float) -> Iterator[tuple[str, HomeChange]]:
        for agent, pool in self._agents.pools.items():
            if pool.sessions is not None:
                for change in pool.sessions.homes.everything(now):
                    yield agent, change

    async def settled(self) -> None:
        """Return when every peer that answers has what is queued now, or after SETTLE_S."""
        futures = [future for link in self._links.values() if (future := link.settled()) is not None]
        if futures:
            await asyncio.wait(futures, timeout=SETTLE_S)

    def receive(self, peer: str, rows: Iterable[Sequence[Any]], caught_up: bool, now: float) -> None:
        """Merge a peer's rows. Raises what a wrong shape raises."""
        for agent, session, instance, replica, version, moves, placed_at, idle_s in rows:
            pool = self._agents.pools.get(agent)
            if pool is not None and pool.sessions is not None:
                place = (intern(str(instance)), intern(str(replica)), intern(str(version)))  # one copy for all its sessions
                home = SessionHome(*place, int(moves), float(placed_at))
                pool.sessions.homes.merge(HomeChange(str(session), home, float(idle_s)), now)
        if peer not in self._caught_up:
            if caught_up:
                self._caught_up.add(peer)
            self._progress.set()

    async def catch_up(self, own: str, timeout_s: float) -> bool:
        """Wait until every other gateway of the snapshot has sent all its homes.

        False: one of them is missing, and none has sent anything for `timeout_s`.
        """
        while True:
            snapshot = self._agents.snapshot
            peers = {peer.gateway for peer in snapshot.peers} - {own} if snapshot else set()
            if peers <= self._caught_up:
                return True
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), timeout_s)
            except asyncio.TimeoutError:
                return False


def _kept(agent: str, change: HomeChange) -> list[Any]:
    """As a row of the homes file."""
    return [agent, change.session, *change.home, round(time.monotonic() - change.idle_s, 3)]


def _row(entry: _Entry, now: float) -> list[Any]:
    agent, (session, home, idle_s), queued_at = entry
    return [agent, session, *home, round(idle_s + now - queued_at, 3)]
