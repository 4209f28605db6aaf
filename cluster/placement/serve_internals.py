"""The one place that uses private members of Ray and Ray Serve.

`serve.run` on an existing app restarts its replicas, and the public API for a replica count (the REST call
`…/deployments/{name}/scale`) needs Ray's dashboard, which a cluster may run without; `scale` does what that call does. Free
resources per node are public only as a sum over the cluster, or with the dashboard. A replica that was never placed would
be given its whole drain time, though it has nothing to finish. The folder of Serve's logs and the
buckets of its latencies have no public name.
tests/integration/test_serve_internals.py fails when Ray changes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

import ray
from ray._private.state import available_resources_per_node
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.constants import REQUEST_LATENCY_BUCKETS_MS, SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.logging_utils import get_serve_logs_dir


def scale(app: str, deployment: str, replicas: int) -> None:
    """Set the replica count of an app that was started with `external_scaler_enabled=True`. Blocks; restarts nothing."""
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    target = DeploymentID(name=deployment, app_name=app)
    ray.get(controller.update_deployment_replicas.remote(target, replicas), timeout=30)


def end_unstarted(app: str, known: Collection[str]) -> int:
    """Kill the replicas of a deleted app that are not among the `known` (unique ids): they never ran. Blocks."""
    ended = 0
    for replica, actor in replicas_of(app).items():
        if replica not in known:
            with contextlib.suppress(ValueError):  # it has stopped
                ray.kill(ray.get_actor(actor, namespace=SERVE_NAMESPACE))
                ended += 1
    return ended


def replicas_of(app: str) -> dict[str, str]:
    """The replicas of an app that exist, running or not: unique id -> name of its actor. Blocks."""
    names = (
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == SERVE_NAMESPACE
    )
    ids = {name: ReplicaID.from_full_id_str(name) for name in names if ReplicaID.is_full_id_str(name)}
    return {replica.unique_id: name for name, replica in ids.items() if replica.deployment_id.app_name == app}


def free_per_node() -> dict[str, dict[str, float]]:
    """Ray node id -> resource -> the amount that is not in use. Blocks."""
    return {node: dict(free) for node, free in available_resources_per_node().items()}


def logs_folder() -> Path:
    """The folder with the logs of Serve's replicas on this node."""
    return Path(get_serve_logs_dir())


def latency_buckets_ms() -> list[float]:
    """The buckets of Serve's own latencies: a node's metrics agent takes those of the first process that reports a name."""
    return list(REQUEST_LATENCY_BUCKETS_MS)
