"""How much does each instance have in flight, as far as one gateway can know?

Its own requests it knows at once. Of the other gateways' it hears now and then, by the count that rides on an answer
(`reported`) or from the gateways themselves (`exchanged`). The newest word counts, and fades towards the mean as it ages:
load = own + mean + (others - mean) * exp(-age / tau), tau being the usual time of an answer and the mean that of all
instances heard of lately. One that was never heard of has the mean. A single gateway sees its own counts, exactly.
`sent`, `done`, `reported` and `exchanged` write `Instance.load` at once; `refresh`, called before every choice, writes
what has faded, every tau / 8 and a slice at a time. Not for forecasts: only differences between instances mean anything.
Source: fleet simulation (benchmarks/results/simulation.md); believing old reports in full is what makes gateways herd.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf

from policies.base import Instance

FADE = 1.0  # tau in usual times of an answer, waiting included; half or four times as much is nearly as good
REFRESHES = 8  # per tau
SLICE = 32  # instances that one call of `refresh` looks at
FIRST_USUAL_S = 1.0  # until the first answer
REMEMBERED = 64  # answers that the usual time is a mean of, the newer ones weighing more
FORGOTTEN = 1e-6  # what has faded to this says nothing of the mean any more: 14 tau
NEVER = -1e300  # heard; -inf would make no number of an age over an endless tau
SHORTEST_S = 1e-6  # a clock that stands still must not divide by zero


class LoadView:
    """One agent's instances, known by the object, not by name: a new process under an old name starts with nothing.

    `now` is monotonic seconds. `fade` inf: whatever was heard last is believed in full.
    """

    def __init__(self, fade: float = FADE) -> None:
        self._fade = fade
        self._seen: dict[Instance, _Seen] = {}
        self._usual_s = FIRST_USUAL_S
        self._answers = 0
        self._mean = 0.0
        self._due = -inf  # when the next round of refreshing begins
        self._next = 0  # the first instance of the slice after the last one; 0: no round is under way
        self._total = self._heard = 0  # of the others' requests, and of instances heard of, so far in this round

    def __repr__(self) -> str:
        loads = ", ".join(f"{instance.id} {instance.load:.1f}" for instance in self._seen)
        return f"<LoadView, fading in {self.tau_s:.3g} s: {loads or 'nothing known'}>"

    @property
    def tau_s(self) -> float:
        return self._fade * self._usual_s

    def own(self, instance: Instance) -> int:
        """This gateway's requests in flight there: what it tells the others."""
        seen = self._seen.get(instance)
        return 0 if seen is None else seen.own

    def heard_at(self, instance: Instance) -> float:
        """When its load was last told by anybody; long ago if never."""
        seen = self._seen.get(instance)
        return NEVER if seen is None else seen.heard_at

    def sent(self, instance: Instance) -> None:
        seen = self._of(instance)
        seen.own += 1
        instance.load = seen.own + seen.believed

    def done(self, instance: Instance) -> None:
        """A request that was `sent` is over, in whatever way."""
        seen = self._seen.get(instance)
        if seen is not None and seen.own:
            seen.own -= 1
            instance.load = seen.own + seen.believed

    def reported(self, instance: Instance, in_flight: int, now: float) -> None:
        """The instance's own count, of all gateways' requests: this one's among them are what is in flight from here now."""
        seen = self._of(instance)
        self._hear(instance, seen, max(0, in_flight - seen.own), now)

    def exchanged(self, instance: Instance, others: int, now: float) -> None:
        """What the other gateways together say that they have in flight there."""
        self._hear(instance, self._of(instance), others, now)

    def answered(self, seconds: float) -> None:
        """A request succeeded and took this long, from `sent` to `done`."""
        self._answers += 1
        self._usual_s += (max(seconds, SHORTEST_S) - self._usual_s) / min(self._answers, REMEMBERED)

    def forget(self, instance: Instance) -> None:
        """It is gone. A late `done` changes nothing."""
        self._seen.pop(instance, None)

    def refresh(self, instances: Sequence[Instance], now: float) -> None:
        """Bring `load` up to date where it is time; a call costs what SLICE instances cost at most.

        `instances`: all of the agent's that are in use, in every call, not only those that may take one request.
        """
        if now < self._due and not self._next:
            return
        if not self._next:
            self._due = now + self.tau_s / REFRESHES
            self._total = self._heard = 0
        self._write(instances[self._next : self._next + SLICE], now)
        self._next += SLICE
        if self._next >= len(instances):
            self._next = 0
            if self._heard:
                self._mean = self._total / self._heard

    def _write(self, instances: Sequence[Instance], now: float) -> None:
        seen_of, mean, tau_s = self._seen, self._mean, self.tau_s
        total = heard = 0
        for instance in instances:
            seen = seen_of.get(instance) or self._of(instance)
            age = now - seen.heard_at
            weight = exp(-age / tau_s) if age > 0 else 1.0
            if weight > FORGOTTEN:
                total += seen.others
                heard += 1
            seen.believed = believed = mean + (seen.others - mean) * weight
            instance.load = seen.own + believed
        self._total += total
        self._heard += heard

    def _hear(self, instance: Instance, seen: _Seen, others: int, now: float) -> None:
        if now >= seen.heard_at:
            seen.believed = seen.others = others
            seen.heard_at = now
            instance.load = seen.own + others

    def _of(self, instance: Instance) -> _Seen:
        seen = self._seen.get(instance)
        if seen is None:
            seen = self._seen[instance] = _Seen(self._mean)
            instance.load = self._mean
        return seen


class _Seen:
    __slots__ = ("believed", "heard_at", "others", "own")

    def __init__(self, believed: float) -> None:
        self.own = 0
        self.others = 0  # as last heard
        self.heard_at = NEVER
        self.believed = believed  # `others` as of the last refresh, faded
