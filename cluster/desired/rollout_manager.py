"""All agents' rollouts: started by operators, advanced as instances become healthy, saved before they are acted on.

The rules are in cluster/desired/rollout_transitions.py; here they meet the state file, the code packages and the settings.
`State.config` is the file's; `settings` has each agent's stable version put in. Every change is one sync step that ends
with the state saved, so two operators at once are served one after the other, and the second may be rejected.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.config import AgentSettings, ConfigError, Settings, agent_from_block, parse
from cluster.desired import rollout_transitions as transitions
from cluster.desired.apps import AppSpec, AppStatus, Deployed, app_name
from cluster.desired.packages import CannotPack, Packages, pack
from cluster.desired.rollout_transitions import Rollout, RolloutRejected, Version
from cluster.desired.state import AppliedConfig, AppRecord, State, StateNotSaved
from cluster.fleet.registry import Registry
from cluster.instance_state import HEALTHY
from cluster.messages import VersionShare

Tell = Callable[[str, str, str], None]  # agent, version, event text


@dataclass(frozen=True)
class DeployRequest:
    """The arguments of `swiftclaw deploy`. `block`: the agent's, from the file; `percent` 100: replaces the stable version."""

    block: dict[str, Any]
    package: str
    percent: float = 100.0
    version: str | None = None
    regions: tuple[str, ...] = ()
    deadline_s: float = transitions.DEADLINE_S


class RolloutManager:
    """`commit` saves the state with changed fields, then changes them; `tell` records an event; `at` is called with the
    name of each failpoint."""

    def __init__(
        self, state: State, packages: Packages, commit: Callable[..., None], tell: Tell, at: Callable[[str], None]
    ) -> None:
        self._state, self.packages = state, packages
        self._commit, self._tell, self._at = commit, tell, at
        offset_s = time.time() - time.monotonic()  # a clock that is set shortens no deadline, and extends none
        self._clock: Callable[[], float] = lambda: time.monotonic() + offset_s
        for name, block in state.config.agents.items():
            state.rollouts.setdefault(name, transitions.from_block(block))
        for name, rollout in state.rollouts.items():
            state.rollouts[name] = transitions.with_deadline_by(rollout, self._clock())
        self.unfrozen: dict[str, str] = {}  # agent -> why its code is not frozen
        self._read: dict[str, tuple[object, Version, AgentSettings]] = {}  # a canary's settings, parsed once
        self._down: dict[str, str] = {}  # agent -> its version with traffic but no healthy instance
        self._stopping: dict[str, Rollout] = {}  # what the agents ran that `forget_all` stops

    @property
    def rollouts(self) -> dict[str, Rollout]:
        """By agent."""
        return self._state.rollouts

    def shown(self, agent: str) -> Rollout:
        """What the agent runs, or ran before `forget_all`: its instances drain, and are still shown."""
        return self.rollouts.get(agent) or self._stopping[agent]

    # --- the file ---------------------------------------------------------------------------------------

    def apply_file(self, args: Mapping[str, Any], folder: str, *, must_save: bool = True) -> Settings:
        """Apply cluster.yaml; returns the settings in force. Raises ConfigError, RolloutRejected, StateNotSaved."""
        asked = parse(args, Path(folder))
        config, before = AppliedConfig(asked.to_args(), folder), self._state.config.agents
        after: dict[str, Rollout] = {}
        for name, block in config.agents.items():
            rollout = self.rollouts.get(name)
            try:
                after[name] = (
                    transitions.apply_file(rollout, before.get(name, block), block, self._clock())
                    if rollout
                    else transitions.from_block(block)
                )
            except RolloutRejected as error:
                raise RolloutRejected(f"agents.{name}.{error}") from None
        settings = self._effective(config, after)
        self._commit(must_save, config=config, rollouts=after)
        return settings

    def settings(self) -> Settings:
        """The file's settings with the stable versions put in."""
        return self._effective(self._state.config, self.rollouts)

    def _effective(self, config: AppliedConfig, rollouts: Mapping[str, Rollout]) -> Settings:
        blocks = {name: transitions.with_own(block, rollouts[name].stable) for name, block in config.agents.items()}
        return parse({**config.args, "agents": blocks}, Path(config.folder))

    # --- requests of operators -----------------------------------------------------------------------------------

    def deploy(self, agent: str, wish: DeployRequest, taken: Sequence[str]) -> tuple[str, str]:
        """(outcome, version); `taken`: names of versions that still have apps or instances.

        Outcome: started | canary | replacing | settings | nothing. Raises RolloutRejected, ConfigError.
        """
        if wish.package and not self.packages.has(wish.package):
            raise RolloutRejected(f"the Controller does not have the code package of {agent}; deploy it again")
        rollout = self.rollouts.get(agent)
        if rollout is None:
            return "started", self._add(agent, wish)
        own = transitions.own_of(wish.block)
        known = self._same_version(rollout, own, wish)
        if known is not None:
            return ("settings" if self._settle(agent, wish) else "nothing"), known.name
        names = {version.name for version in rollout.versions} | set(taken)
        if wish.version in names:
            raise RolloutRejected(
                f"{agent} already runs a version {wish.version} with other code or settings; choose another --version"
            )
        name = wish.version or transitions.next_name({*names, *rollout.used})
        version = Version(name, own, wish.package)
        self._check(agent, transitions.with_own(wish.block, version))
        config = self._with_regions(agent, wish.regions)
        self._put(
            agent, transitions.bring_in(rollout, version, wish.percent, wish.block, self._clock(), wish.deadline_s), config
        )
        self._at("deploy.saved")
        stable = rollout.stable.name
        goal = f"will replace {stable}" if wish.percent >= 100 else f"will receive {wish.percent:g} % of {stable}'s traffic"
        self._tell(agent, name, f"{name} of {agent} {goal}")
        return ("replacing" if wish.percent >= 100 else "canary"), name

    def promote(self, agent: str, percent: float, why: str = "") -> str:
        """The canary's version. Raises RolloutRejected."""
        rollout = transitions.promote(self._rollout_of(agent), percent, self._clock())
        assert rollout.canary is not None
        self._put(agent, rollout)
        self._at("promote.saved")
        name = rollout.canary.version.name
        self._tell(agent, name, f"{name} of {agent} will receive {percent:g} % of the traffic{f': {why}' if why else ''}")
        return name

    def pause(self, agent: str, paused: bool) -> str:
        """The canary's version. Raises RolloutRejected."""
        rollout = transitions.pause(self._rollout_of(agent), paused)
        assert rollout.canary is not None
        self._put(agent, rollout)
        name = rollout.canary.version.name
        self._tell(agent, name, f"the canary analysis of {name} of {agent} was {'paused' if paused else 'resumed'}")
        return name

    def take_back(self, agent: str, why: str) -> str:
        """Return all traffic to the stable version at once; the version that is removed. Raises RolloutRejected."""
        before = self._rollout_of(agent)
        self._put(agent, transitions.take_back(before, why))
        assert before.canary is not None
        self._at("rollback.saved")
        self._tell(agent, before.canary.version.name, f"{agent}: {self.rollouts[agent].last}")
        return before.canary.version.name

    # --- in every round -----------------------------------------------------------------------------------

    async def freeze(self) -> None:
        """Store the folder as the code package of every version that has none yet."""
        undecided = [name for name, one in self.rollouts.items() if any(v.package is None for v in one.versions)]
        if not undecided:
            return
        config = self._state.config
        folder = Path(config.folder)
        try:
            package = await asyncio.to_thread(pack, folder, skip=[Path(parse(config.args, folder).state_dir)])
            await asyncio.to_thread(self.packages.put, package)
            digest, why = package.digest, ""
        except (CannotPack, OSError) as error:
            digest, why = "", str(error)
        rollouts = dict(self.rollouts)
        for name in rollouts.keys() & set(undecided):
            self.unfrozen[name] = why
            rollouts[name] = transitions.frozen(rollouts[name], digest)
        self._commit(False, rollouts=rollouts)
        self._at("deploy.packed")

    def advance(
        self,
        desired: Mapping[str, AppSpec],
        registry: Registry,
        observed: Mapping[str, AppStatus],
        problems: Mapping[str, str],
    ) -> bool:
        """Advance every agent's rollout; whether one changed. `desired`: the apps that should run now."""
        changed = False
        self._find_versions_down(registry)
        for agent, before in list(self.rollouts.items()):
            after = replace(before, leaving=tuple(name for name in before.leaving if registry.of(agent, name)))
            if before.canary is not None and before.canary.moving:
                readiness = _readiness(agent, before, desired, registry, observed, problems)
                after = transitions.advance(
                    after, readiness.ready, readiness.missing, self._clock(), hopeless=readiness.hopeless
                )
            if after == before:
                continue
            takes_over = after.stable.name != before.stable.name
            config = self._taken_over(agent, before.canary.block) if takes_over and before.canary is not None else None
            try:
                self._put(agent, after, config)
            except StateNotSaved:  # the step is taken when it can be saved
                self._commit(False)
                continue
            changed = True
            self._at("takeover.saved" if takes_over else "traffic.saved")
            self._report(agent, before, after)
        return changed

    def shares(self) -> dict[str, VersionShare]:
        """For snapshots: the division of each agent's traffic."""
        shares = {}
        for agent, rollout in self.rollouts.items():
            canary = rollout.canary
            has_traffic = canary is not None and canary.percent > 0
            shares[agent] = VersionShare(
                stable=rollout.stable.name,
                canary=canary.version.name if canary is not None and has_traffic else None,
                percent=canary.percent if canary is not None else 0.0,
                leaving=rollout.leaving,
            )
        return shares

    def deployed(self, settings: Settings) -> dict[str, list[Deployed]]:
        """The versions that should run, for `desired_apps`."""
        deployed: dict[str, list[Deployed]] = {}
        for agent, stable in settings.agents.items():
            rollout = self.rollouts.get(agent)
            if rollout is None:  # it stops (`forget_all`)
                continue
            deployed[agent] = [Deployed(stable, rollout.stable.package or "", 100.0)]
            if rollout.canary is not None:
                canary = rollout.canary
                share = max(canary.percent, canary.target)
                deployed[agent].append(Deployed(self._settings_of(agent, canary.version), canary.version.package or "", share))
        return deployed

    def warnings(self) -> list[str]:
        """For operators: each one a sentence."""
        down = [
            f"{agent}: {name} has no healthy instance: the other version receives its traffic"
            for agent, name in self._down.items()
        ]
        unfrozen = [
            f"{agent}: the code could not be packaged, so restarted instances run the files as they are at that time: {why}"
            for agent, why in self.unfrozen.items()
            if agent in self.rollouts and self.rollouts[agent].stable.package == ""
        ]
        return [*down, *unfrozen]

    def to_keep(self) -> dict[str, object]:
        """The desired state as plain JSON, for gateways to keep; `restore` reads it."""
        content = self._state.to_json()
        return {key: content[key] for key in ("args", "folder", "started_with", "rollouts")}

    def restore(self, kept: Mapping[str, Any], started_with: str, started_config: AppliedConfig) -> None:
        """The state folder was lost. `started_config`, if SwiftClaw was started with it since then, wins over what was kept."""
        is_same = kept["started_with"] == started_with
        config = AppliedConfig(kept["args"], kept["folder"] if is_same else self._state.config.folder)
        rollouts = {name: transitions.restored(rollout) for name, rollout in kept["rollouts"].items()}
        self._commit(False, config=config, rollouts=rollouts)
        if is_same:
            return
        try:
            self.apply_file(started_config.args, started_config.folder, must_save=False)
        except RolloutRejected as error:
            self._tell("", "", f"the settings from cluster.yaml were not applied: {error}")

    def tidy(self, apps: Iterable[AppRecord]) -> None:
        """Delete the packages that neither a version nor an app needs."""
        needed = {version.package for rollout in self.rollouts.values() for version in rollout.versions}
        self.packages.drop_all_but({str(digest) for digest in needed | {app.package for app in apps}})

    def forget_all(self) -> None:
        """All agents will stop."""
        self._stopping = dict(self.rollouts)
        self._commit(False, config=self._state.config.without_agents(), rollouts={})

    # --- inside ---------------------------------------------------------------------------------------------------

    def _rollout_of(self, agent: str) -> Rollout:
        if agent not in self.rollouts:
            raise RolloutRejected(f"there is no agent {agent!r} (known: {', '.join(self.rollouts) or 'none'})")
        return self.rollouts[agent]

    def _add(self, agent: str, wish: DeployRequest) -> str:
        block = transitions.with_regions({**wish.block, **({"version": wish.version} if wish.version else {})}, wish.regions)
        made = transitions.from_block(block)
        rollout = replace(made, stable=replace(made.stable, package=wish.package))
        self._put(agent, rollout, self._with_block(agent, self._check(agent, block)))
        self._at("deploy.saved")
        self._tell(agent, rollout.stable.name, f"{agent} starts with version {rollout.stable.name}")
        return rollout.stable.name

    def _settle(self, agent: str, wish: DeployRequest) -> bool:
        """Same code, same version settings: take over the agent's own settings. Whether that changes anything."""
        before = self._state.config.agents[agent]
        after = self._check(agent, transitions.with_regions(transitions.settled_block(before, wish.block), wish.regions))
        if after == before:
            return False
        self._commit(config=self._with_block(agent, after))
        self._at("regions.saved")
        return True

    def _same_version(self, rollout: Rollout, own: dict[str, Any], wish: DeployRequest) -> Version | None:
        """The version that already is what is deployed. None: a new one is needed, also for a canary of unchanged code.

        Raises RolloutRejected when it is the canary and another share of the traffic is asked for.
        """
        for known in reversed(rollout.versions):  # a canary may run the stable version's code
            if not known.is_as(Version(known.name, own, wish.package)) or wish.version not in (None, known.name):
                continue
            if known == rollout.stable:
                is_canary_wish = wish.percent < 100 and wish.version is None and rollout.canary is None
                if is_canary_wish:  # whoever asks for a canary gets one: to rehearse a rollout, or to restart an agent by one
                    continue
            elif rollout.canary is not None and rollout.canary.target != wish.percent:
                raise RolloutRejected(transitions.already_canary(rollout.canary, wish.percent))
            return known
        return None

    def _with_regions(self, agent: str, regions: Sequence[str]) -> AppliedConfig:
        if not regions:
            return self._state.config
        before = self._state.config.agents[agent]
        return self._with_block(agent, self._check(agent, transitions.with_regions(before, regions)))

    def _find_versions_down(self, registry: Registry) -> None:
        """A version with traffic but no healthy instance: gateways use the other one, and an event says so."""
        before, self._down = self._down, {}
        for agent, rollout in self.rollouts.items():
            if rollout.canary is None or not rollout.canary.percent:
                continue
            healthy = {v.name: any(r.state == HEALTHY for r in registry.of(agent, v.name)) for v in rollout.versions}
            for name in [name for name, any_is in healthy.items() if not any_is and any(healthy.values())]:
                self._down[agent] = name
                if before.get(agent) != name:
                    self._tell(
                        agent, name, f"{name} of {agent} has no healthy instance: the other version receives its traffic"
                    )

    def _taken_over(self, agent: str, block: Mapping[str, Any]) -> AppliedConfig:
        before = self._state.config.agents[agent]
        try:
            return self._with_block(agent, self._check(agent, transitions.settled_block(before, block)))
        except ConfigError as error:  # the regions have changed since
            self._tell(agent, "", f"{agent} keeps its settings, because the new version's are no longer valid: {error}")
            return self._state.config

    def _with_block(self, agent: str, block: dict[str, Any]) -> AppliedConfig:
        return self._state.config.with_agent(agent, block)

    def _check(self, agent: str, block: Mapping[str, Any]) -> dict[str, Any]:
        """The block as plain JSON. Raises ConfigError."""
        return dict(agent_from_block(agent, block, Path(self._state.config.folder)).to_block())

    def _settings_of(self, agent: str, version: Version) -> AgentSettings:
        block = self._state.config.agents[agent]
        known = self._read.get(agent)
        if known is None or known[0] is not block or known[1] != version:
            made = agent_from_block(agent, transitions.with_own(block, version), Path(self._state.config.folder))
            known = self._read[agent] = (block, version, made)
        return known[2]

    def _put(self, agent: str, rollout: Rollout, config: AppliedConfig | None = None) -> None:
        """Raises StateNotSaved."""
        self._commit(rollouts={**self.rollouts, agent: rollout}, config=config or self._state.config)

    def _report(self, agent: str, before: Rollout, after: Rollout) -> None:
        if before.canary is None:
            return
        name = before.canary.version.name
        if after.canary is None:
            self._tell(agent, name, f"{agent}: {after.last}")
        elif after.canary.percent != before.canary.percent:
            self._tell(agent, name, f"{name} of {agent} receives {after.canary.percent:g} % of the traffic")
        elif after.canary.note != before.canary.note:
            self._tell(agent, name, f"{name} of {agent} {after.canary.note}")


@dataclass(frozen=True)
class Readiness:
    ready: bool
    missing: str = ""
    hopeless: bool = False


def _readiness(
    agent: str,
    rollout: Rollout,
    desired: Mapping[str, AppSpec],
    registry: Registry,
    observed: Mapping[str, AppStatus],
    problems: Mapping[str, str],
) -> Readiness:
    """Whether the canary has the instances for its target. A region where the stable version has no healthy instance either
    is no reason to wait: no capacity is lost there."""
    assert rollout.canary is not None
    name, total, missing = rollout.canary.version.name, 0, []
    for app, spec in desired.items():
        if app != app_name(agent, name, spec.region):
            continue
        healthy = _healthy(registry, agent, name, spec.region)
        total += healthy
        status = observed.get(app)
        why = problems.get(app) or (status.message if status else "")
        if status is not None and status.status == "DEPLOY_FAILED":
            return Readiness(False, f"{app} cannot start: {_brief(why)}", hopeless=True)
        if healthy < spec.replicas and _healthy(registry, agent, rollout.stable.name, spec.region):
            because = f": {_brief(why)}" if why else ""
            missing.append(f"{healthy} of {spec.replicas} instances healthy in {spec.region}{because}")
    if not total and not missing:
        missing.append("no instance is healthy")
    return Readiness(not missing, "; ".join(missing))


def _healthy(registry: Registry, agent: str, version: str, region: str) -> int:
    return sum(record.state == HEALTHY for record in registry.of(agent, version, region))


def _brief(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
