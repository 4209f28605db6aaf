"""Which version answers a request: first the version is chosen, then an instance of it.

Has the interface of a `Chooser`, and one chooser for each version, so that levels, turns and sessions of versions do not mix.
The version of a request is decided once, before its first attempt (`version_for`), and kept through its retries. Only a version
without a healthy instance is passed over: an answer of another version is better than none. Without a share (`VersionShare`)
versions make no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from cluster.messages import VersionShare
from policies.base import Instance, Options, Request
from policies.candidates import Candidates, Group
from policies.chooser import Chooser
from policies.rollout import Turns, in_canary


class VersionRouter:
    """The versions of one agent at one gateway."""

    def __init__(self, agent: str, make: Callable[[], Chooser], rng: Random) -> None:
        self._agent, self._make, self._rng = agent, make, rng
        self._share: VersionShare | None = None
        self._choosers: dict[str, Chooser] = {}
        self._all = make()  # without a share
        self._turns = Turns(0)
        self._by_version: dict[str, Group] = {}
        self._stamp: object = None

    def __repr__(self) -> str:
        return f"<VersionRouter of {self._agent}: {self._share}>"

    def update_share(self, share: VersionShare | None) -> None:
        """Apply the Controller's newest share; takes effect with the next request."""
        before, self._share = self._share, share
        self._stamp = None
        if share is None:
            return
        percent = share.percent if share.canary else 0.0
        if before is None or (before.canary is None) != (share.canary is None):
            self._turns = Turns(percent, self._rng)
        else:
            self._turns.update(percent)
        names = (share.stable, *([share.canary] if share.canary else []), *share.leaving)
        self._choosers = {name: self._choosers.get(name) or self._make() for name in names}

    def configure(self, strategy: str, options: Options, *, affinity: bool) -> None:
        self._make = _maker(self._rng, strategy, options, affinity)
        for chooser in (self._all, *self._choosers.values()):
            chooser.configure(strategy, options, affinity=affinity)

    def version_for(self, session: str | None, pinned: str | None = None, *, fresh: bool = False) -> str | None:
        """The version for a new request. `pinned`: of its session's home; `fresh`: the session was created for this request."""
        share = self._share
        if share is None:
            return None
        if pinned is not None and pinned in self._choosers:
            return pinned  # `choose` passes over it when it has no healthy instance
        if share.canary is None:
            return share.stable
        of_canary = self._turns.canary() if session is None or fresh else in_canary((self._agent, session), share.percent)
        return share.canary if of_canary else share.stable

    def choose(
        self, eligible: Sequence[Instance], everyone: Sequence[Instance], request: Request, stamp: object = None
    ) -> Instance | None:
        """As `Chooser.choose`, among the instances of the request's version; of another version if that has none for it."""
        if self._share is None:
            return self._all.choose(eligible, everyone, request, stamp)
        if stamp is None or stamp != self._stamp:
            self._group(everyone, stamp)
        for version in self._order(request.version):
            group = self._by_version[version]
            own = _of_version(version, group, eligible, alone=len(group.members) == len(everyone))
            chosen = self._choosers[version].choose(own, group.members, request, stamp) if own else None
            if chosen is not None:
                return chosen
        return None

    def _group(self, everyone: Sequence[Instance], stamp: object) -> None:
        self._stamp = stamp
        self._by_version = {name: Group(i for i in everyone if i.version == name) for name in self._choosers}

    def _order(self, wanted: str | None) -> list[str]:
        """The versions to try, the wanted one first; those without a healthy instance are left out."""
        share = self._share
        assert share is not None
        others = [name for name in self._choosers if name != wanted and name not in share.leaving]
        names = [wanted, *others] if wanted in self._choosers else others
        return [name for name in names if self._has_healthy(name)]

    def _has_healthy(self, version: str) -> bool:
        group = self._by_version.get(version)
        return group is not None and any(instance.healthy for instance in group.members)


def _of_version(version: str, group: Group, eligible: Sequence[Instance], *, alone: bool) -> Sequence[Instance]:
    """`alone`: there is no other version."""
    if isinstance(eligible, Candidates):
        return eligible.within(group)
    return eligible if alone else [instance for instance in eligible if instance.version == version]


def _maker(rng: Random, strategy: str, options: Options, affinity: bool) -> Callable[[], Chooser]:
    return lambda: Chooser(strategy, rng, options, affinity=affinity)
