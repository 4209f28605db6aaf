"""Holds cluster/placement/serve_internals.py to the Ray it was written for."""

from __future__ import annotations

import inspect

import pytest
import ray

from cluster.placement.serve_internals import latency_buckets_ms
from deployments.serve_series import HTTP_ERRORS, HTTP_LATENCY, HTTP_ONGOING, HTTP_REQUESTS

pytestmark = pytest.mark.cluster


def test_ray_is_the_minor_version_this_was_written_for() -> None:
    assert ray.__version__.startswith("2.60."), "try cluster/placement/serve_internals.py before moving the pin"


def test_serves_controller_still_takes_a_deployment_and_a_count() -> None:
    """That scaling works is tested live in test_main_job.py (another count is applied …)."""
    from ray.serve._private.common import DeploymentID
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve._private.controller import ServeController

    signature = inspect.signature(ServeController.update_deployment_replicas)
    assert list(signature.parameters) == ["self", "deployment_id", "target_num_replicas"]
    assert DeploymentID(name="Instance", app_name="a").app_name == "a"
    assert (SERVE_CONTROLLER_NAME, SERVE_NAMESPACE) == ("SERVE_CONTROLLER_ACTOR", "serve")


def test_ray_still_says_what_is_free_on_each_node() -> None:
    """That it is true is tested live in test_scaling.py (instances that have no place …)."""
    from ray._private.state import available_resources_per_node

    assert list(inspect.signature(available_resources_per_node).parameters) == []


def test_ray_still_says_where_it_keeps_its_logs() -> None:
    """That the access log is there is tested live in test_request_tracing.py."""
    from ray.serve._private.logging_utils import get_serve_logs_dir

    assert list(inspect.signature(get_serve_logs_dir).parameters) == []


def test_a_replicas_actor_is_still_named_for_its_app_and_its_id() -> None:
    """That one which waits for a place does not hold up `down` is tested live in test_faults.py (a Ray node …)."""
    from ray.serve._private.common import DeploymentID, ReplicaID

    replica = ReplicaID("abc", DeploymentID(name="Instance", app_name="a.v1.us"))
    assert ReplicaID.is_full_id_str(replica.to_full_id_str())
    assert ReplicaID.from_full_id_str(replica.to_full_id_str()) == replica
    assert inspect.signature(ray.util.list_named_actors).parameters.keys() == {"all_namespaces"}


def test_what_serve_counts_has_the_labels_that_are_reported_in_its_place() -> None:
    """That its dashboards show them is tested live in test_prometheus.py."""
    from ray.serve._private.common import RequestProtocol
    from ray.serve._private.constants import REQUEST_LATENCY_BUCKETS_MS
    from ray.serve._private.request_ingress_metrics import RequestIngressMetrics

    of_a_proxy = RequestIngressMetrics(RequestProtocol.HTTP, source="proxy", node_id="n", node_ip_address="a")
    made = {metric.info["name"]: metric.info["tag_keys"] for metric in vars(of_a_proxy).values()}
    for series in (HTTP_REQUESTS, HTTP_ERRORS, HTTP_LATENCY, HTTP_ONGOING):
        assert made[series.name] == series.labels
    assert of_a_proxy.processing_latency_tracker.info["boundaries"] == REQUEST_LATENCY_BUCKETS_MS == latency_buckets_ms()
