"""The one place that uses what Ray and Ray Serve keep private.

Why: `serve.run` on an existing app restarts its replicas, and the public way to change a replica count (the REST call
`…/deployments/{name}/scale`) needs Ray's dashboard, which a cluster may run without. This is what that call does. The same
holds for what is free on each node: Ray's public word on that is the sum over the cluster, or needs the dashboard. And a
replica that waits for a place would be given all of its time to drain, though it never ran. And nobody but Ray says where it
keeps its logs.
tests/integration/test_serve_internals.py fails when Ray changes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

import ray
from ray._private.state import available_resources_per_node
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.logging_utils import get_serve_logs_dir


def scale(app: str, deployment: str, replicas: int) -> None:
    """Set the replica count of an app that was started with `external_scaler_enabled=True`. Blocks; restarts nothing."""
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    target = DeploymentID(name=deployment, app_name=app)
    ray.get(controller.update_deployment_replicas.remote(target, replicas), timeout=30)


def end_unstarted(app: str, known: Collection[str]) -> int:
    """End the replicas of a deleted app that are not among the `known` (unique ids): they never ran. How many. Blocks."""
    ended = 0
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] != SERVE_NAMESPACE or not ReplicaID.is_full_id_str(actor["name"]):
            continue
        replica = ReplicaID.from_full_id_str(actor["name"])
        if replica.deployment_id.app_name == app and replica.unique_id not in known:
            with contextlib.suppress(ValueError):  # it is gone
                ray.kill(ray.get_actor(actor["name"], namespace=SERVE_NAMESPACE))
                ended += 1
    return ended


def free_per_node() -> dict[str, dict[str, float]]:
    """Ray node id -> resource -> how much of it nobody holds. Blocks."""
    return {node: dict(free) for node, free in available_resources_per_node().items()}


def logs_folder() -> Path:
    """Where this process' node has the logs of Serve's replicas."""
    return Path(get_serve_logs_dir())
