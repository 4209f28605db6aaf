"""Where does each session live, and do all gateways agree?

Each gateway keeps the home of every session of an agent and exchanges what changes with the others. A home is one process
(a restarted instance has lost what its sessions knew). Two gateways that have placed one session differently agree
without asking each other: the home that was moved more often wins, then the one placed first, then the lower names.
Entries expire with idle time, and use is exchanged too, so that no gateway forgets what another one still serves.
Not for choosing the home: that is policies/chooser.py. Pure: the caller gives the time and carries the changes.
Source: last-writer-wins registers with a total order (Shapiro et al., A comprehensive study of CRDTs, 2011).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from policies.sessions.moved import MovedSessions

MOST_SESSIONS = 100_000
TOUCH_SHARE = 0.1  # of the ttl: use is exchanged when it is this much newer than what the others know


class SessionHome(NamedTuple):
    """The process that a session lives at. `placed_at`: seconds since the epoch, by the clock of the placing gateway."""

    instance: str
    replica: str
    version: str
    moves: int = 0
    placed_at: float = 0.0

    def beats(self, other: SessionHome) -> bool:
        """Whether this home replaces the other; a total order, the same at every gateway."""
        return self._rank() > other._rank()

    def _rank(self) -> tuple[int, float, tuple[str, str, str]]:
        return self.moves, -self.placed_at, (self.replica, self.instance, self.version)


class HomeChange(NamedTuple):
    """One entry as it travels between gateways. `idle_s`: since its last use, so that clocks need not agree."""

    session: str
    home: SessionHome
    idle_s: float


class _Entry:
    """`told_at`: the last use that the other gateways know of."""

    __slots__ = ("home", "told_at", "used_at")

    def __init__(self, home: SessionHome, used_at: float, told_at: float) -> None:
        self.home, self.used_at, self.told_at = home, used_at, told_at


class SessionHomes:
    """The homes of one agent's sessions at one gateway. Bounded: the session that was idle longest leaves first.

    `ttl_s` counts from the last request. Times are monotonic seconds, but for `SessionHome.placed_at`.
    """

    def __init__(self, ttl_s: float = 3600.0, most: int = MOST_SESSIONS) -> None:
        self.ttl_s = ttl_s
        self._most = most
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # idle longest first
        self._changed: dict[str, None] = {}  # sessions to report, in order
        self.moved = MovedSessions()

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<SessionHomes: {len(self._entries)} sessions, {len(self._changed)} to report>"

    def get(self, session: str, now: float) -> SessionHome | None:
        """The session's home. Looking it up is using it."""
        self._expire(now)
        entry = self._entries.get(session)
        if entry is None or now - entry.used_at > self.ttl_s:  # one that was merged may stand out of order
            return None
        entry.used_at = now
        self._entries.move_to_end(session)
        if now - entry.told_at > self.ttl_s * TOUCH_SHARE:
            self._changed[session] = None
        return entry.home

    def peek(self, session: str) -> SessionHome | None:
        """The session's home, without using it."""
        entry = self._entries.get(session)
        return None if entry is None else entry.home

    def place(self, session: str, home: SessionHome, now: float) -> None:
        """This gateway has chosen the home; it is reported to the others."""
        self._put(session, _Entry(home, now, -self.ttl_s))
        self._changed[session] = None
        self._expire(now)

    def merge(self, change: HomeChange, now: float) -> bool:
        """Take over what another gateway reports. Returns whether the session's home is another one now."""
        used_at = now - max(0.0, change.idle_s)
        if now - used_at > self.ttl_s:
            return False
        entry = self._entries.get(change.session)
        if entry is None:
            self._put(change.session, _Entry(change.home, used_at, used_at))
            self._sort(change.session, used_at)
            return True
        entry.used_at, entry.told_at = max(entry.used_at, used_at), max(entry.told_at, used_at)
        if not change.home.beats(entry.home):
            return False
        if change.home.moves == entry.home.moves:
            self.moved.withdraw(change.session)
        moved = change.home.replica != entry.home.replica
        entry.home = change.home
        return moved

    def recover(self, change: HomeChange, now: float) -> None:
        """Take over what a gateway that has ended knew; what is news here is reported to the others."""
        if self.merge(change, now):
            self._changed[change.session] = None

    def changes(self, now: float, most: int | None = None) -> list[HomeChange]:
        """What the other gateways have to learn: new and moved homes, and use that they do not know of. Each once."""
        changes: list[HomeChange] = []
        while self._changed and (most is None or len(changes) < most):
            session = next(iter(self._changed))
            del self._changed[session]
            entry = self._entries[session]  # one that leaves takes its change along
            entry.told_at = entry.used_at
            changes.append(HomeChange(session, entry.home, now - entry.used_at))
        return changes

    @property
    def has_changes(self) -> bool:
        return bool(self._changed)

    def everything(self, now: float) -> Iterator[HomeChange]:
        """All entries, for a gateway that starts; the one that was idle longest first."""
        self._expire(now)
        return iter([HomeChange(session, entry.home, now - entry.used_at) for session, entry in self._entries.items()])

    def _put(self, session: str, entry: _Entry) -> None:
        self._entries[session] = entry
        self._entries.move_to_end(session)
        while len(self._entries) > self._most:
            oldest, _ = self._entries.popitem(last=False)
            self._changed.pop(oldest, None)

    def _sort(self, session: str, used_at: float) -> None:
        """An entry that was idle elsewhere goes to the front when it is older than the front one: it leaves in its turn."""
        first = next(iter(self._entries))
        if used_at < self._entries[first].used_at:
            self._entries.move_to_end(session, last=False)

    def _expire(self, now: float) -> None:
        while self._entries:
            session, entry = next(iter(self._entries.items()))
            if now - entry.used_at <= self.ttl_s:
                return
            del self._entries[session]
            self._changed.pop(session, None)
