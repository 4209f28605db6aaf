"""The one place that uses what Ray and Ray Serve keep private.

Why: `serve.run` on an existing app restarts its replicas, and the public way to change a replica count (the REST call
`…/deployments/{name}/scale`) needs Ray's dashboard, which a cluster may run without. This is what that call does. The same
holds for what is free on each node: Ray's public word on that is the sum over the cluster, or needs the dashboard.
tests/integration/test_serve_internals.py fails when Ray changes it.
"""

from __future__ import annotations

import ray
from ray._private.state import available_resources_per_node
from ray.serve._private.common import DeploymentID
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE


def scale(app: str, deployment: str, replicas: int) -> None:
    """Set the replica count of an app that was started with `external_scaler_enabled=True`. Blocks; restarts nothing."""
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    target = DeploymentID(name=deployment, app_name=app)
    ray.get(controller.update_deployment_replicas.remote(target, replicas), timeout=30)


def free_per_node() -> dict[str, dict[str, float]]:
    """Ray node id -> resource -> how much of it nobody holds. Blocks."""
    return {node: dict(free) for node, free in available_resources_per_node().items()}
