"""What is missing where, when instances that should run have no place?

Compares the Serve apps that are desired with who has registered; where some stay away longer than a start takes, and no
node of their region has room for one more, that is said, with what is free there. They stay desired: Serve places them as
soon as there is room, and a node autoscaler sees their demand. Not for those that start and fail: these say so themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cluster.desired.apps import AppSpec
from cluster.fleet.registry import Registry
from cluster.messages import InstanceSpec
from cluster.placement.serve import NodeResources

PATIENCE_S = 12.0


class Capacity:
    """Which apps lack instances, and since when."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def short(self, desired: Iterable[AppSpec], registry: Registry, now: float) -> list[tuple[AppSpec, int]]:
        """The apps that have lacked instances for a while, and how many are missing."""
        missing = {spec.name: (spec, spec.replicas - _present(spec, registry)) for spec in desired if spec.kind == "instance"}
        self._since = {name: self._since.get(name, now) for name, (_, count) in missing.items() if count > 0}
        return [missing[name] for name, since in self._since.items() if now - since >= PATIENCE_S]


def explained(spec: AppSpec, missing: int, nodes: Iterable[NodeResources]) -> str | None:
    """Why `missing` instances of the app have no place; None when there is room for one: then it is being started."""
    needs = {name: amount for name, amount in (("CPU", spec.cpus), ("GPU", spec.gpus)) if amount}
    there = [node for node in nodes if not spec.placed or node.region == spec.region]
    if any(all(node.free.get(name, 0) >= amount - 1e-9 for name, amount in needs.items()) for node in there):
        return None
    agent = spec.start.agent if isinstance(spec.start, InstanceSpec) else spec.name
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in needs.items()) or "a node"
    said = f"region {spec.region}: {missing} of {spec.replicas} instances of {agent} wait for {wanted} each"
    if not there:
        return f"{said}: no Ray node carries the label region={spec.region}"
    free = ", ".join(_free(node, needs) for node in there)
    return f"{said}: its {len(there)} node{'s have' if len(there) > 1 else ' has'} {free} free"


def _free(node: NodeResources, needs: Mapping[str, float]) -> str:
    return " and ".join(f"{node.free.get(name, 0):g} of {node.total.get(name, 0):g} {name}" for name in needs)


def _present(spec: AppSpec, registry: Registry) -> int:
    return sum(record.registration.app == spec.name and not record.draining for record in registry)
