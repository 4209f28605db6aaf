"""Where do one agent's sessions live, and where does a request of one of them go? For one gateway; all sync.

A session lives at the process that answered it first, until that process leaves, drains away or accepts no connection. Its
requests wait while their home is full, and for a home that only another gateway's snapshot names yet. The homes themselves,
and how gateways agree on them: policies/sessions/homes.py. Not for choosing a new home: that is policies/chooser.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from cluster.instance_state import STARTING, STOPPED
from deployments.balancing.backend import Backend, Lease
from deployments.balancing.lost_homes import LostHomes
from deployments.balancing.wait_queue import NoCapacity
from policies.base import Request
from policies.sessions.homes import SessionHome, SessionHomes
from policies.sessions.moved import Cause
from policies.wait_queue import ANY

SNAPSHOT_LAG_S = 2.0  # how far behind the newest snapshot a gateway may be


class SessionPlacement:
    """The sessions of one agent. `lost`: the instances that have left, whether or not the agent keeps sessions."""

    def __init__(self, ttl_s: float, lost: LostHomes) -> None:
        self.homes = SessionHomes(ttl_s)
        self._lost = lost
        self._backends: Mapping[str, Backend] = {}  # by replica

    def update(self, ttl_s: float, backends: Mapping[str, Backend]) -> None:
        """Apply a new snapshot. `backends`: the agent's instances, by replica."""
        self.homes.ttl_s, self._backends = ttl_s, backends

    # --- a request ------------------------------------------------------------------------------------------------

    def home_of(self, request: Request, pinned: Backend | None, now: float) -> SessionHome | None:
        """The home of the request's session. `pinned`: the instance that its token names, which counts for what no gateway
        remembers."""
        home = self.homes.get(request.session, now) if request.session is not None else None
        if home is None and request.session is not None and pinned is not None:
            member = pinned.member
            home = SessionHome(member.id, member.replica, member.version, placed_at=0.0)  # as old as a home can be
        return home

    def pin(self, request: Request, home: SessionHome, *, may_try: bool, now: float) -> Request:
        """The request with its home in place of what its token says. Raises NoCapacity: it waits while its home is full, or
        until the snapshot names it. `may_try`: whether this request has not tried the home yet."""
        backend = self.backend_of(home)
        if backend is None:
            if self._is_to_come(home):
                raise NoCapacity
            return replace(request, pin=None)
        if may_try and backend.full and backend.healthy and backend.breaker_allows(now) and not backend.possibly_stale(now):
            raise NoCapacity
        return replace(request, pin=backend.member.id)

    def settle(self, session: str, home: SessionHome | None, lease: Lease, now: float) -> None:
        """After the choice: a session whose home is none, has left or accepts no connection lives where it was sent."""
        backend = lease.backend
        lease.session_moved = home is not None and home.replica != backend.member.replica
        before = self.backend_of(home)
        if home is None or before is None or before.suspect(now):
            self.homes.place(session, _home_at(backend, home), now)
            lease.session_placed = True
            if home is not None and lease.session_moved:
                self.homes.moved.add(session, self._lost.cause(home.replica, self._backends), now)
        elif self.homes.peek(session) is None:  # known from a token alone
            self.homes.place(session, home, now)
            lease.session_placed = True

    def lane_of(self, request: Request) -> str:
        """Where the request waits for capacity: for the home of its session (the instance's id) while that is in rotation."""
        home = None if request.session is None else self.homes.peek(request.session)
        backend = self.backend_of(home)
        if home is not None and backend is None and self._is_to_come(home):
            return home.instance
        return backend.member.id if backend is not None and backend.healthy else ANY

    # --- what is known --------------------------------------------------------------------------------------------

    def backend_of(self, home: SessionHome | None) -> Backend | None:
        """The process that the session lives at, while its checks pass (or it drains): another one of its name is not it."""
        backend = None if home is None else self._backends.get(home.replica)
        return backend if backend is not None and backend.passes_checks and backend.member.state != STOPPED else None

    def instance_of(self, session: str) -> Backend | None:
        """The instance that the session lives at, after the choice, whatever its state."""
        home = self.homes.peek(session)
        return None if home is None else self._backends.get(home.replica)

    def learn(self, session: str, backend: Backend, now: float) -> bool:
        """The instance has created this session itself. Returns whether that is news."""
        known = self.homes.get(session, now)
        if known is not None and known.replica == backend.member.replica:
            return False
        self.homes.place(session, _home_at(backend, known), now)
        return True

    def take_moved(self, now: float) -> dict[Cause, int]:
        """Sessions that have lost their home since the last call, by cause."""
        return self.homes.moved.take(now)

    def _is_to_come(self, home: SessionHome) -> bool:
        """Whether another gateway's snapshot is newer: it has just placed the session at an instance that is not ready here."""
        if abs(time.time() - home.placed_at) > SNAPSHOT_LAG_S:
            return False
        backend = self._backends.get(home.replica)
        return home.replica not in self._lost if backend is None else backend.member.state == STARTING


def _home_at(backend: Backend, before: SessionHome | None) -> SessionHome:
    member = backend.member
    moves = 0 if before is None else before.moves + 1
    return SessionHome(member.id, member.replica, member.version, moves, time.time())
