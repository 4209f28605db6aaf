"""Which versions of an agent should run, and which share of the traffic has the new one?

Pure and without a clock: what an operator asks for, what the file says and what has become healthy each turn one frozen
`Rollout` into the next. A version is brought in by a target: the share that it should have, which it gets as soon as it
has the instances for that, and not before. At 100 it is the stable one. So there is no phase that a crash could leave
half done: whoever reads a `Rollout` from the state file can go on from it.
Source: the desired-against-observed shape is that of Argo Rollouts and Flagger.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

DEADLINE_S = 120.0  # how long the instances for a share may take to become healthy
OWN = ("agent", "resources", "runtimeEnv")  # what belongs to a version; all other settings are the agent's
NAMES_KEPT = 50
CARRIED = ("regions", "scaling", "limits")  # a version that comes in takes over what the agent has, if it says nothing


class RolloutRejected(ValueError):
    """What was asked for cannot be done now; the text says why in a sentence."""


@dataclass(frozen=True)
class Version:
    """One version of an agent's code, with the settings that are its own."""

    name: str
    own: dict[str, Any] = field(default_factory=dict)  # as the file has them
    package: str | None = None  # the digest of its code; "": not frozen; None: to be frozen before it is started

    def is_as(self, other: Version) -> bool:
        """Whether it is the same but for the name."""
        return (self.own, self.package) == (other.own, other.package)


@dataclass(frozen=True)
class CanaryState:
    """A version that comes in. Times are seconds since the epoch: they outlive processes."""

    version: Version
    target: float  # percent that it should have
    percent: float  # percent that it has
    changed_at: float  # when `percent` became what it is
    deadline_at: float  # until then the target has to be reached
    deadline_s: float = DEADLINE_S  # how long that is, each time
    block: dict[str, Any] = field(default_factory=dict)  # the agent's settings from when it is stable on; {}: as before
    paused: bool = False
    from_file: bool = False  # brought in by another `version` in cluster.yaml
    note: str = ""  # what was last found about it

    @property
    def moving(self) -> bool:
        return self.percent != self.target


@dataclass(frozen=True)
class Rollout:
    """The versions of one agent."""

    stable: Version
    file_version: str  # what the file said when it was last heard
    canary: CanaryState | None = None
    leaving: tuple[str, ...] = ()  # was stable before: sessions that live there may finish
    used: tuple[str, ...] = ()  # names of versions that were brought in lately, whatever became of them
    last: str = ""  # how the last change ended

    @property
    def versions(self) -> tuple[Version, ...]:
        return (self.stable,) if self.canary is None else (self.stable, self.canary.version)

    def __repr__(self) -> str:
        if self.canary is None:
            return f"<Rollout: {self.stable.name}>"
        to = f", to {self.canary.target:g} %" if self.canary.moving else ""
        return f"<Rollout: {self.stable.name}, {self.canary.version.name} {self.canary.percent:g} %{to}>"


def dump(rollout: Rollout) -> dict[str, Any]:
    """For JSON; shares its inner values with `rollout`."""
    canary = rollout.canary
    return {
        **vars(rollout),
        "stable": vars(rollout.stable),
        "canary": None if canary is None else {**vars(canary), "version": vars(canary.version)},
    }


def restored(dumped: Mapping[str, Any]) -> Rollout:
    """The rollout that `dump` wrote, read back from JSON."""
    canary = dumped["canary"]
    return Rollout(
        stable=Version(**dumped["stable"]),
        file_version=dumped["file_version"],
        canary=None if canary is None else CanaryState(**{**canary, "version": Version(**canary["version"])}),
        leaving=tuple(dumped["leaving"]),
        used=tuple(dumped["used"]),
        last=dumped["last"],
    )


def own_of(block: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an agent's block that belongs to its version."""
    return {key: block[key] for key in OWN if block.get(key)}


def with_own(block: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """The block with that version in it."""
    return {**{key: item for key, item in block.items() if key not in OWN}, **version.own, "version": version.name}


def from_block(block: Mapping[str, Any]) -> Rollout:
    """Of an agent that is new."""
    name = str(block.get("version") or "v1")
    return Rollout(Version(name, own_of(block)), file_version=name)


def apply_file(rollout: Rollout, before: Mapping[str, Any], block: Mapping[str, Any], now: float) -> Rollout:
    """The file was applied again. Its `version` counts when it has changed since last time: then that version is brought in.

    The settings in it that belong to a version go to the version that it names. Raises RolloutRejected.
    """
    name = str(block.get("version") or "v1")
    own = own_of(block)
    canary = rollout.canary
    if name == rollout.file_version:
        if own == own_of(before):
            return rollout
        if canary is not None and canary.from_file:
            return replace(rollout, canary=replace(canary, version=replace(canary.version, own=own)))
        return replace(rollout, stable=replace(rollout.stable, own=own))
    rollout = replace(rollout, file_version=name)
    if name == rollout.stable.name:
        taken_back = canary is not None and canary.from_file
        return replace(rollout, canary=None, stable=replace(rollout.stable, own=own)) if taken_back else rollout
    if canary is not None and name == canary.version.name:
        return rollout
    if canary is not None:
        raise RolloutRejected(f"version: {name} cannot come in while {_with_share(canary)}; promote it or roll it back first")
    return _with_canary(rollout, _coming(Version(name, own), 100, {}, now, DEADLINE_S, from_file=True))


def bring_in(
    rollout: Rollout,
    version: Version,
    percent: float,
    block: Mapping[str, Any],
    now: float,
    deadline_s: float = DEADLINE_S,
) -> Rollout:
    """`version` beside the stable one with that share, or with 100 in its place. Raises RolloutRejected."""
    if rollout.canary is not None:
        if rollout.canary.moving:
            raise RolloutRejected(_busy(rollout.canary))
        raise RolloutRejected(f"{_with_share(rollout.canary)}; promote it or roll it back first")
    return _with_canary(rollout, _coming(version, percent, dict(block), now, deadline_s))


def promote(rollout: Rollout, percent: float, now: float) -> Rollout:
    """More, or less, for the canary. Raises RolloutRejected."""
    canary = rollout.canary
    if canary is None:
        raise RolloutRejected(f"there is no canary: {rollout.stable.name} has all the traffic (`swiftclaw deploy --canary N`)")
    if canary.moving:
        raise RolloutRejected(_busy(canary))
    if not 0 < percent <= 100:
        raise RolloutRejected(f"{percent:g} is not a percentage above 0; `swiftclaw rollback` takes the canary away")
    if percent < canary.percent:  # that needs no instances
        return replace(rollout, canary=replace(canary, percent=percent, target=percent, changed_at=now, note=""))
    return replace(rollout, canary=replace(canary, target=percent, deadline_at=now + canary.deadline_s, note=""))


def pause(rollout: Rollout, paused: bool) -> Rollout:
    """Whether the analysis may move the canary. Raises RolloutRejected."""
    if rollout.canary is None:
        raise RolloutRejected(f"there is no canary: {rollout.stable.name} has all the traffic")
    return replace(rollout, canary=replace(rollout.canary, paused=paused))


def take_back(rollout: Rollout, why: str) -> Rollout:
    """All traffic back to stable at once; the canary is no longer wanted. Raises RolloutRejected."""
    canary = rollout.canary
    if canary is None:
        raise RolloutRejected(f"there is nothing to roll back: {rollout.stable.name} has all the traffic")
    file_version = rollout.stable.name if canary.from_file else rollout.file_version  # the file may ask for it again
    return replace(rollout, canary=None, file_version=file_version, last=f"{canary.version.name} was rolled back: {why}")


def advance(rollout: Rollout, ready: bool, missing: str, now: float, *, hopeless: bool = False) -> Rollout:
    """One step on, if there is one. `ready`: the canary has the instances for its target; `missing`: which it lacks;
    `hopeless`: and will not get."""
    canary = rollout.canary
    if canary is None or not canary.moving:
        return rollout
    if ready and canary.target >= 100:
        old = rollout.stable.name
        return replace(
            rollout, stable=canary.version, canary=None, leaving=(old,), last=f"{canary.version.name} took over from {old}"
        )
    if ready:
        return replace(rollout, canary=replace(canary, percent=canary.target, changed_at=now, note=""))
    if now < canary.deadline_at and not hopeless:
        return rollout
    if canary.percent == 0:
        return take_back(rollout, missing if hopeless else f"it was not healthy within {canary.deadline_s:g} s ({missing})")
    within = "" if hopeless else f" within {canary.deadline_s:g} s"
    note = f"stays at {canary.percent:g} %: not ready for {canary.target:g} %{within} ({missing})"
    return replace(rollout, canary=replace(canary, target=canary.percent, note=note))


def frozen(rollout: Rollout, package: str) -> Rollout:
    """Those versions that were to be frozen have that code."""
    stable, canary = rollout.stable, rollout.canary
    if stable.package is None:
        rollout = replace(rollout, stable=replace(stable, package=package))
    if canary is not None and canary.version.package is None:
        rollout = replace(rollout, canary=replace(canary, version=replace(canary.version, package=package)))
    return rollout


def settled_block(before: Mapping[str, Any], coming: Mapping[str, Any]) -> dict[str, Any]:
    """The agent's settings when a version that was deployed with `coming` has become the stable one."""
    if not coming:
        return dict(before)
    kept = {key: before[key] for key in CARRIED if key in before and (key == "regions" or key not in coming)}
    said = {key: before[key] for key in (*OWN, "version") if key in before}  # the file's word, to know when it changes
    others = {key: item for key, item in coming.items() if key not in (*OWN, "version", "regions")}
    return {**said, **others, **kept}


def with_regions(block: Mapping[str, Any], regions: Sequence[str]) -> dict[str, Any]:
    """The block with these regions: what it says of one stays, a new one gets the defaults. None named: as it is."""
    if not regions:
        return dict(block)
    said = block.get("regions") or {}
    return {**block, "regions": {region: said.get(region, {}) for region in regions}}


def instances_for(percent: float, instances: int) -> int:
    """How many of a region's instances a share of its traffic needs: at least one where there is any."""
    return max(1, ceil(instances * percent / 100 - 1e-9)) if instances else 0


def next_name(known: Collection[str]) -> str:
    """vN with an N above all that are known; v2 after names of another kind."""
    numbers = [int(found[1]) for name in known if (found := re.fullmatch(r"v(\d+)", name))]
    return f"v{max(numbers, default=1) + 1}"


def _coming(
    version: Version, percent: float, block: dict[str, Any], now: float, deadline_s: float, *, from_file: bool = False
) -> CanaryState:
    return CanaryState(version, percent, 0.0, now, now + deadline_s, deadline_s, block, from_file=from_file)


def _with_canary(rollout: Rollout, canary: CanaryState) -> Rollout:
    used = [name for name in rollout.used if name != canary.version.name]
    return replace(rollout, canary=canary, used=(*used, canary.version.name)[-NAMES_KEPT:], last="")


def _busy(canary: CanaryState) -> str:
    goal = "takes over" if canary.target >= 100 else f"gets its {canary.target:g} %"
    return f"another change is under way: {canary.version.name} {goal} as soon as it is healthy; wait, or roll it back"


def _with_share(canary: CanaryState) -> str:
    if canary.moving and canary.percent == 0:
        return f"{canary.version.name} is being started"
    return f"{canary.version.name} has {canary.percent:g} %"
