"""A Controller with a Serve that does what it is told, and a clock. The Controller can be killed at any failpoint."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.controller import Controller
from cluster.desired.apps import AppSpec, AppStatus
from cluster.desired.failpoints import POINTS
from cluster.desired.packages import Package, pack
from cluster.desired.rollout_manager import DeployRequest
from cluster.desired.rollout_transitions import Rollout
from cluster.messages import InstanceSpec, Registration


class Killed(BaseException):
    """The process is gone, as with SIGKILL."""


@dataclass
class FakeServe:
    """What outlives a Controller: its apps, and the instances in them."""

    apps: dict[str, AppSpec] = field(default_factory=dict)
    asked: int = 0
    deleted: list[str] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    labels: frozenset[str] = frozenset()

    async def labelled(self) -> set[str]:
        return set(self.labels)

    async def running(self) -> dict[str, AppStatus]:
        self.asked += 1
        return {name: AppStatus("RUNNING", "") for name in self.apps}

    async def nodes(self) -> list[Any]:
        return []

    async def start(self, specs: list[AppSpec]) -> None:
        for spec in specs:
            self.starts.append(spec.name)
            self.apps[spec.name] = spec

    async def replicas(self, app: str) -> set[str]:
        return set()

    async def scale(self, spec: AppSpec) -> None:
        self.apps[spec.name] = replace(self.apps[spec.name], replicas=spec.replicas)

    async def delete(self, app: str, present: object) -> None:
        self.deleted.append(app)
        self.apps.pop(app, None)

    def versions(self) -> set[str]:
        return {spec.start.version for spec in self.apps.values() if isinstance(spec.start, InstanceSpec)}


class World:
    """A Controller, the Serve it drives, and a clock; `kill_at` has it die there, and a new one takes over."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.folder, self.serve, self.now = folder, FakeServe(), 1000.0
        self.kill_at: str | None = None
        self.ill: set[str] = set()  # versions whose instances never are well
        self.args: dict[str, Any] = {
            "stateDir": str(folder / "state"),
            "agents": {"a": {"agent": "shop:agent", "regions": {"us": {"instances": 3}, "eu": {"instances": 1}}}},
        }
        (folder / "shop.py").write_text("agent = 1")
        self.shares: list[tuple[str, float]] = []
        self.start()

    def start(self) -> None:
        self.controller = Controller(self.args, str(self.folder), self.serve)  # type: ignore[arg-type]
        self.controller._reconciler._settled_at = 0.0
        self.controller._spawn = lambda work: work.close()  # type: ignore[method-assign]
        self.controller._attend = lambda record: None  # type: ignore[method-assign]
        self.controller.versions._clock = lambda: self.now
        self.controller._reconciler._at = self.controller.versions._at = self.point
        self.register()

    def point(self, name: str) -> None:
        assert name in POINTS, name
        if name == self.kill_at:
            self.kill_at = None
            raise Killed

    @property
    def rollout(self) -> Rollout:
        return self.controller.versions.rollouts["a"]

    def deploy(self, percent: float = 10, code: str = "two", **wish: Any) -> tuple[str, str]:
        (self.folder / "shop.py").write_text(f"agent = {code!r}")
        package = pack(self.folder, skip=[self.folder / "state"])
        self.controller.versions.packages.put(Package(package.digest, package.content))
        asked = DeployRequest(self.args["agents"]["a"], package.digest, percent, **wish)
        done: tuple[str, str] = self.run(self.controller.deploy("a", asked))
        return done

    def round(self) -> None:
        """One round of reconciling, and what follows from it in the world outside."""
        self.run(self.controller._reconciler.reconcile())
        self.register()

    def rounds(self, number: int = 4) -> None:
        for _ in range(number):
            self.round()

    def run(self, work: Any) -> Any:
        try:
            return asyncio.run(work)
        except Killed:
            self.start()
            return None

    def register(self) -> None:
        """Instances present themselves, are watched and checked; those of apps that are gone are gone."""
        registry, wanted = self.controller.registry, set()
        for spec in self.serve.apps.values():
            if not isinstance(spec.start, InstanceSpec):
                continue
            for number in range(spec.replicas):
                replica = f"{spec.name}#{number}"
                wanted.add(replica)
                start = spec.start
                registry.admit(
                    Registration(start.agent, start.version, start.region, spec.name, replica, "h", 1, 1, "n", 0.0,
                                 package=start.package)
                )  # fmt: skip
                registry.observe(replica)
                registry.judge(replica, start.version not in self.ill, "", None)
        for record in list(registry):
            if record.registration.replica not in wanted:
                registry.remove(record.registration.replica)

    def healthy(self, version: str) -> int:
        return sum(record.state == "healthy" for record in self.controller.registry.of("a", version))
