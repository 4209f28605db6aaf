"""The files for real clusters: as valid as can be said without a cloud, and at one with what the project itself says."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.config import Settings, parse

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy/kuberay/rayservice.yaml"
DOCUMENTS = {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(KUBERAY.read_text("utf-8"))}
SPEC = DOCUMENTS["RayService/agents"]["spec"]
CLUSTER = SPEC["rayClusterConfig"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
RAY_UP = yaml.safe_load((ROOT / "deploy/ray-up/cluster.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def settings() -> Settings:
    config = yaml.safe_load(SPEC["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    args = {name: value for name, value in application["args"].items() if name != "folder"}
    return parse(args, Path(application["args"]["folder"]))


def test_the_embedded_configuration_is_valid(settings: Settings) -> None:
    assert list(settings.agents) == ["my-agent"]


def test_every_region_that_runs_something_has_a_group_of_pods_that_carries_its_label(settings: Settings) -> None:
    labels = {group["labels"]["region"] for group in GROUPS.values()}
    assert set(settings.regions) == labels


def test_a_group_has_room_for_the_most_instances_that_its_region_may_have(settings: Settings) -> None:
    for group in GROUPS.values():
        region = group["labels"]["region"]
        wanted = sum((a.regions[region].max_instances or 0) * a.resources.cpus for a in settings.agents.values())
        cpus = float(container(group)["resources"]["requests"]["cpu"]) * group["maxReplicas"]
        assert cpus >= wanted > 0


def test_pods_without_a_gateway_do_not_wait_for_one_to_be_ready_and_the_others_do(settings: Settings) -> None:
    edges = {gateway.region for gateway in settings.gateways}
    for group in GROUPS.values():
        assert ("readinessProbe" in container(group)) == (group["labels"]["region"] not in edges)


def test_the_services_lead_to_the_ports_that_are_configured(settings: Settings) -> None:
    (gateway,) = settings.gateways
    assert DOCUMENTS["Service/agents-gateway"]["spec"]["ports"][0]["targetPort"] == gateway.port
    assert DOCUMENTS["Service/agents-admin"]["spec"]["ports"][0]["targetPort"] == settings.admin.port
    assert {gateway.host, settings.admin.host} == {"0.0.0.0"}, "a Service cannot reach a loopback address"


def test_the_state_is_on_a_volume_of_the_head(settings: Settings) -> None:
    template = CLUSTER["headGroupSpec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in template["containers"][0]["volumeMounts"]}
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in template["volumes"]}
    assert f"PersistentVolumeClaim/{claims[mounts[settings.state_dir]]}" in DOCUMENTS


def test_pods_may_take_longer_to_leave_than_their_instances(settings: Settings) -> None:
    longest_s = max(agent.drain_timeout_s for agent in settings.agents.values())
    for group in GROUPS.values():
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > longest_s


def test_ray_has_one_version_everywhere() -> None:
    image = re.search(r"^FROM rayproject/ray:([\d.]+)-", (ROOT / "deploy/kuberay/Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert image is not None
    assert image[1] == CLUSTER["rayVersion"] == ray.__version__


def test_the_file_for_ray_up_is_what_rays_own_schema_asks_for() -> None:
    schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text("utf-8"))
    jsonschema.validate(RAY_UP, schema)


def test_every_node_type_is_of_a_region_and_the_head_runs_no_agents() -> None:
    types = RAY_UP["available_node_types"]
    assert all(kind["labels"]["region"] for kind in types.values())
    assert types[RAY_UP["head_node_type"]]["resources"]["CPU"] == 0
    assert len({kind["labels"]["region"] for kind in types.values()}) > 1


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found
