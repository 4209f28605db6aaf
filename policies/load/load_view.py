"""How many requests does each instance have in flight, as far as one gateway can know?

A gateway counts its own requests. It learns of the other gateways' now and then, from the count on a response
(`reported`) or from the gateways themselves (`exchanged`). The newest report counts, and fades towards the mean as it ages:
load = own + mean + (others - mean) * exp(-age / tau), tau being the usual response time and the mean that of all
instances reported lately. An instance without a report has the mean. A single gateway sees its own counts, exactly.
`sent`, `done`, `reported` and `exchanged` write `Instance.load` at once; `refresh`, called before every choice, writes
what has faded, every tau / 8 and a slice at a time. Not for forecasts: only differences between instances mean anything.
Source: fleet simulation (benchmarks/results/simulation.md); believing old reports in full is what makes gateways herd.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf

from policies.base import Instance

FADE = 1.0  # tau in usual response times, waiting included; half or four times as much is nearly as good
REFRESHES = 8  # per tau
SLICE = 32  # instances that one call of `refresh` looks at
FIRST_USUAL_S = 1.0  # until the first answer
REMEMBERED = 64  # responses that the usual time is a mean of, newer ones weighing more
FORGOTTEN = 1e-6  # a report faded to this no longer counts for the mean: 14 tau
NEVER = -1e300  # not -inf: an age divided by an infinite tau must stay a number
SHORTEST_S = 1e-6  # a clock that stands still must not divide by zero


class LoadView:
    """One agent's instances, known by the object, not by name: a new process under an old name starts with nothing.

    `now` is monotonic seconds. `fade` inf: the last report is believed in full.
    """

    def __init__(self, fade: float = FADE) -> None:
        self._fade = fade
        self._loads: dict[Instance, _InstanceLoad] = {}
        self._usual_s = FIRST_USUAL_S
        self._answers = 0
        self._mean = 0.0
        self._own, self._believed = 0, 0.0  # sums over all instances
        self._due = -inf  # when the next round of refreshing begins
        self._next = 0  # the first instance of the slice after the last one; 0: no round is under way
        self._total = self._reports = 0  # of the others' requests, and of instances reported, so far in this round

    def __repr__(self) -> str:
        loads = ", ".join(f"{instance.id} {instance.load:.1f}" for instance in self._loads)
        return f"<LoadView, fading in {self.tau_s:.3g} s: {loads or 'no instances'}>"

    @property
    def tau_s(self) -> float:
        return self._fade * self._usual_s

    @property
    def total(self) -> float:
        """The sum of all instances' `load`, to the millionth, without a look at each."""
        return round(self._own + self._believed, 6)

    def own(self, instance: Instance) -> int:
        """This gateway's requests in flight there, which it reports to the others."""
        load = self._loads.get(instance)
        return 0 if load is None else load.own

    def reported_at(self, instance: Instance) -> float:
        """When its load was last reported; NEVER if it was not."""
        load = self._loads.get(instance)
        return NEVER if load is None else load.reported_at

    def sent(self, instance: Instance) -> None:
        load = self._of(instance)
        load.own += 1
        self._own += 1
        instance.load = load.own + load.believed

    def done(self, instance: Instance) -> None:
        """A request that was `sent` has ended, in whatever way."""
        load = self._loads.get(instance)
        if load is not None and load.own:
            load.own -= 1
            self._own -= 1
            instance.load = load.own + load.believed

    def reported(self, instance: Instance, in_flight: int, now: float) -> None:
        """The instance's own count, of all gateways' requests: this one's among them are what is in flight from here now."""
        load = self._of(instance)
        self._observe(instance, load, max(0, in_flight - load.own), now)

    def exchanged(self, instance: Instance, others: int, now: float) -> None:
        """What the other gateways together report to have in flight there."""
        self._observe(instance, self._of(instance), others, now)

    def answered(self, seconds: float) -> None:
        """A request succeeded and took this long, from `sent` to `done`."""
        self._answers += 1
        self._usual_s += (max(seconds, SHORTEST_S) - self._usual_s) / min(self._answers, REMEMBERED)

    def forget(self, instance: Instance) -> None:
        """It was removed. A late `done` changes nothing."""
        load = self._loads.pop(instance, None)
        if load is not None:
            self._own -= load.own
            self._believed -= load.believed

    def refresh(self, instances: Sequence[Instance], now: float) -> None:
        """Bring `load` up to date where it is time; a call costs what SLICE instances cost at most.

        `instances`: all of the agent's that are in use, in every call, not only those that may take one request.
        """
        if now < self._due and not self._next:
            return
        if not self._next:
            self._due = now + self.tau_s / REFRESHES
            self._total = self._reports = 0
        self._write(instances[self._next : self._next + SLICE], now)
        self._next += SLICE
        if self._next >= len(instances):
            self._next = 0
            if self._reports:
                self._mean = self._total / self._reports

    def _write(self, instances: Sequence[Instance], now: float) -> None:
        load_of, mean, tau_s = self._loads, self._mean, self.tau_s
        total = reports = 0
        changed = 0.0
        for instance in instances:
            load = load_of.get(instance) or self._of(instance)
            age = now - load.reported_at
            weight = exp(-age / tau_s) if age > 0 else 1.0
            if weight > FORGOTTEN:
                total += load.others
                reports += 1
            believed = mean + (load.others - mean) * weight
            changed += believed - load.believed
            load.believed = believed
            instance.load = load.own + believed
        self._believed += changed
        self._total += total
        self._reports += reports

    def _observe(self, instance: Instance, load: _InstanceLoad, others: int, now: float) -> None:
        if now >= load.reported_at:
            self._believed += others - load.believed
            load.believed = load.others = others
            load.reported_at = now
            instance.load = load.own + others

    def _of(self, instance: Instance) -> _InstanceLoad:
        load = self._loads.get(instance)
        if load is None:
            load = self._loads[instance] = _InstanceLoad(self._mean)
            self._believed += self._mean
            instance.load = self._mean
        return load


class _InstanceLoad:
    __slots__ = ("believed", "others", "own", "reported_at")

    def __init__(self, believed: float) -> None:
        self.own = 0
        self.others = 0  # as last reported
        self.reported_at = NEVER
        self.believed = believed  # `others` as of the last refresh, faded
