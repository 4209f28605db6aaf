"""Which resources are missing, and where, when desired instances cannot be placed?

Compares the desired Serve apps with the registered instances. When some are missing for longer than a start takes and no
node of their region has room for one more, a warning names what they need and what is free. They stay desired: Serve places
them as soon as there is room, and a node autoscaler sees the demand. Not for instances that fail to start: those report it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from cluster.desired.apps import AppSpec
from cluster.fleet.registry import Registry
from cluster.messages import InstanceSpec
from cluster.placement.serve import NodeResources

PATIENCE_S = 12.0


class Capacity:
    """Remembers which apps lack instances, and since when."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def short(
        self, desired: Iterable[AppSpec], registry: Registry, now: float, starting: Callable[[str], int] = lambda app: 0
    ) -> list[tuple[AppSpec, int]]:
        """The apps that have lacked instances for `PATIENCE_S`, and how many are missing.

        `starting`: how many processes of an app are placed and not registered yet.
        """
        missing = {
            spec.name: (spec, spec.replicas - _present(spec, registry) - starting(spec.name))
            for spec in desired
            if spec.kind == "instance"
        }
        self._since = {name: self._since.get(name, now) for name, (_, count) in missing.items() if count > 0}
        return [missing[name] for name, since in self._since.items() if now - since >= PATIENCE_S]


def explained(spec: AppSpec, missing: int, nodes: Iterable[NodeResources]) -> str | None:
    """Why `missing` instances of the app cannot be placed; None when there is room for one: then it is starting."""
    needs = {name: amount for name, amount in (("CPU", spec.cpus), ("GPU", spec.gpus)) if amount}
    candidates = [node for node in nodes if not spec.placed or node.region == spec.region]
    if any(all(node.free.get(name, 0) >= amount - 1e-9 for name, amount in needs.items()) for node in candidates):
        return None
    agent = spec.start.agent if isinstance(spec.start, InstanceSpec) else spec.name
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in needs.items()) or "a node"
    problem = f"region {spec.region}: {missing} of {spec.replicas} instances of {agent} are waiting for {wanted} each"
    if not candidates:
        return f"{problem}: no Ray node carries the label region={spec.region}"
    free = ", ".join(_free(node, needs) for node in candidates)
    nodes_are = "the region's only node has" if len(candidates) == 1 else f"the region's {len(candidates)} nodes have"
    return f"{problem}: {nodes_are} {free} free"


def _free(node: NodeResources, needs: Mapping[str, float]) -> str:
    return " and ".join(f"{node.free.get(name, 0):g} of {node.total.get(name, 0):g} {name}" for name in needs)


def _present(spec: AppSpec, registry: Registry) -> int:
    return sum(record.registration.app == spec.name and not record.draining for record in registry)
