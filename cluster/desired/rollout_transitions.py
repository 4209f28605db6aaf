"""Which versions of an agent should run, and which share of the traffic does the new one receive?

Pure and without a clock: an operator's request, a new file and newly healthy instances each turn one frozen `Rollout` into
the next. A version is brought in with a target: the share that it should receive, and does as soon as its instances for it
are healthy, not before. At 100 it becomes the stable version. So no phase can be left half done by a crash: a Controller
continues from any `Rollout` in the state file.
Source: the desired-against-observed shape is that of Argo Rollouts and Flagger.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

DEADLINE_S = 120.0  # time limit for the instances of a share to become healthy
OWN = ("agent", "resources", "runtimeEnv")  # settings of a version; all others are the agent's
NAMES_KEPT = 50
CARRIED = ("regions", "scaling", "limits")  # a new version keeps the agent's, unless it has its own


class RolloutRejected(ValueError):
    """The change cannot be made now; the text says why in a sentence."""


@dataclass(frozen=True)
class Version:
    """One version of an agent's code, with the settings that are its own."""

    name: str
    own: dict[str, Any] = field(default_factory=dict)  # as the file has them
    package: str | None = None  # the digest of its code; "": not frozen; None: to be frozen before it is started

    def is_as(self, other: Version) -> bool:
        """Whether only the names differ."""
        return (self.own, self.package) == (other.own, other.package)


@dataclass(frozen=True)
class CanaryState:
    """The version that is being introduced. Times are seconds since the epoch: they outlive processes."""

    version: Version
    target: float  # percent of the traffic that it should receive
    percent: float  # percent that it receives
    changed_at: float  # when `percent` became what it is
    deadline_at: float  # time limit for reaching the target
    deadline_s: float = DEADLINE_S  # length of that limit, for each target
    block: dict[str, Any] = field(default_factory=dict)  # the agent's settings once this version is stable; {}: unchanged
    paused: bool = False
    from_file: bool = False  # introduced by a changed `version` in cluster.yaml
    note: str = ""  # the last finding about it

    @property
    def moving(self) -> bool:
        return self.percent != self.target


@dataclass(frozen=True)
class Rollout:
    """The versions of one agent."""

    stable: Version
    file_version: str  # `version` in the file that was applied last
    canary: CanaryState | None = None
    leaving: tuple[str, ...] = ()  # was stable before: its sessions may finish
    used: tuple[str, ...] = ()  # names of versions that were introduced lately, with whatever result
    last: str = ""  # result of the last change

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
    """The rollout of a new agent."""
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
        raise RolloutRejected(
            f"version: cannot start {name} while {_with_share(canary)}; promote or roll back {canary.version.name} first"
        )
    return _with_canary(rollout, _coming(Version(name, own), 100, {}, now, DEADLINE_S, from_file=True))


def bring_in(
    rollout: Rollout,
    version: Version,
    percent: float,
    block: Mapping[str, Any],
    now: float,
    deadline_s: float = DEADLINE_S,
) -> Rollout:
    """Introduce `version` beside the stable one with that share, or with 100 in its place. Raises RolloutRejected."""
    if rollout.canary is not None:
        if rollout.canary.moving:
            raise RolloutRejected(_busy(rollout.canary))
        raise RolloutRejected(f"{_with_share(rollout.canary)}; promote it or roll it back first")
    return _with_canary(rollout, _coming(version, percent, dict(block), now, deadline_s))


def already_canary(canary: CanaryState, percent: float) -> str:
    """Why the code of the canary is not deployed again with another share."""
    return (
        f"{_with_share(canary)} and already runs this code; "
        f"`swiftclaw promote AGENT --canary {percent:g}` changes its share of the traffic"
    )


def promote(rollout: Rollout, percent: float, now: float) -> Rollout:
    """Change the canary's share. Raises RolloutRejected."""
    canary = rollout.canary
    if canary is None:
        raise RolloutRejected(
            f"there is no canary: {rollout.stable.name} receives all traffic (start one with `swiftclaw deploy --canary N`)"
        )
    if canary.moving:
        raise RolloutRejected(_busy(canary))
    if not 0 < percent <= 100:
        raise RolloutRejected(
            f"{percent:g} is not a percentage above 0 and up to 100; use `swiftclaw rollback` to remove the canary"
        )
    if percent < canary.percent:  # needs no more instances
        return replace(rollout, canary=replace(canary, percent=percent, target=percent, changed_at=now, note=""))
    return replace(rollout, canary=replace(canary, target=percent, deadline_at=now + canary.deadline_s, note=""))


def pause(rollout: Rollout, paused: bool) -> Rollout:
    """Whether the analysis may move the canary. Raises RolloutRejected."""
    if rollout.canary is None:
        raise RolloutRejected(f"there is no canary: {rollout.stable.name} receives all traffic")
    return replace(rollout, canary=replace(rollout.canary, paused=paused))


def take_back(rollout: Rollout, why: str) -> Rollout:
    """Return all traffic to the stable version at once and remove the canary. Raises RolloutRejected."""
    canary = rollout.canary
    if canary is None:
        raise RolloutRejected(f"there is nothing to roll back: {rollout.stable.name} receives all traffic")
    file_version = rollout.stable.name if canary.from_file else rollout.file_version  # so that the file may introduce it again
    return replace(rollout, canary=None, file_version=file_version, last=f"{canary.version.name} was rolled back: {why}")


def advance(rollout: Rollout, ready: bool, missing: str, now: float, *, hopeless: bool = False) -> Rollout:
    """The next step, if there is one. `ready`: the canary has the instances for its target; `missing`: those that it lacks;
    `hopeless`: they cannot start."""
    canary = rollout.canary
    if canary is None or not canary.moving:
        return rollout
    if ready and canary.target >= 100:
        old = rollout.stable.name
        return replace(
            rollout,
            stable=canary.version,
            canary=None,
            leaving=(old,),
            last=f"{canary.version.name} replaced {old} as the stable version",
        )
    if ready:
        return replace(rollout, canary=replace(canary, percent=canary.target, changed_at=now, note=""))
    if now < canary.deadline_at and not hopeless:
        return rollout
    if canary.percent == 0:
        return take_back(
            rollout, missing if hopeless else f"its instances were not healthy within {canary.deadline_s:g} s ({missing})"
        )
    within = "" if hopeless else f" within {canary.deadline_s:g} s"
    note = f"stays at {canary.percent:g} % of the traffic: not ready for {canary.target:g} %{within} ({missing})"
    return replace(rollout, canary=replace(canary, target=canary.percent, note=note))


def with_deadline_by(rollout: Rollout, now: float) -> Rollout:
    """For a Controller that starts: no deadline is later than it could be now. The clock was set back if one is."""
    canary = rollout.canary
    if canary is None or canary.deadline_at <= now + canary.deadline_s:
        return rollout
    return replace(rollout, canary=replace(canary, deadline_at=now + canary.deadline_s))


def frozen(rollout: Rollout, package: str) -> Rollout:
    """Set the code package of every version that has none yet."""
    stable, canary = rollout.stable, rollout.canary
    if stable.package is None:
        rollout = replace(rollout, stable=replace(stable, package=package))
    if canary is not None and canary.version.package is None:
        rollout = replace(rollout, canary=replace(canary, version=replace(canary.version, package=package)))
    return rollout


def settled_block(before: Mapping[str, Any], coming: Mapping[str, Any]) -> dict[str, Any]:
    """The agent's settings once a version that was deployed with the block `coming` has become stable."""
    if not coming:
        return dict(before)
    kept = {key: before[key] for key in CARRIED if key in before and (key == "regions" or key not in coming)}
    in_file = {key: before[key] for key in (*OWN, "version") if key in before}  # to notice when the file changes them
    others = {key: item for key, item in coming.items() if key not in (*OWN, "version", "regions")}
    return {**in_file, **others, **kept}


def with_regions(block: Mapping[str, Any], regions: Sequence[str]) -> dict[str, Any]:
    """The block with these regions: settings of a region are kept, a new region has the defaults. Without any: unchanged."""
    if not regions:
        return dict(block)
    settings = block.get("regions") or {}
    return {**block, "regions": {region: settings.get(region, {}) for region in regions}}


def instances_for(percent: float, instances: int) -> int:
    """The number of a region's instances that a share of its traffic needs: at least one, if the region has any."""
    return max(1, ceil(instances * percent / 100 - 1e-9)) if instances else 0


def next_name(taken: Collection[str]) -> str:
    """vN with an N above all taken ones; v2 after names of another form."""
    numbers = [int(match[1]) for name in taken if (match := re.fullmatch(r"v(\d+)", name))]
    return f"v{max(numbers, default=1) + 1}"


def _coming(
    version: Version, percent: float, block: dict[str, Any], now: float, deadline_s: float, *, from_file: bool = False
) -> CanaryState:
    return CanaryState(version, percent, 0.0, now, now + deadline_s, deadline_s, block, from_file=from_file)


def _with_canary(rollout: Rollout, canary: CanaryState) -> Rollout:
    used = [name for name in rollout.used if name != canary.version.name]
    return replace(rollout, canary=canary, used=(*used, canary.version.name)[-NAMES_KEPT:], last="")


def _busy(canary: CanaryState) -> str:
    goal = "will replace the stable version" if canary.target >= 100 else f"will receive {canary.target:g} % of the traffic"
    return f"another change is in progress: {canary.version.name} {goal} as soon as it is healthy; wait for it, or roll it back"


def _with_share(canary: CanaryState) -> str:
    if canary.moving and canary.percent == 0:
        return f"{canary.version.name} is starting"
    return f"{canary.version.name} receives {canary.percent:g} % of the traffic"
