"""The Serve configuration in the file for KubeRay starts: here on one machine, with ports, folders and sizes of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import ROOT, Cluster, get, until

pytestmark = pytest.mark.cluster


def test_the_configuration_of_the_rayservice_starts_as_it_is(stopped: Cluster) -> None:
    service = next(yaml.safe_load_all((ROOT / "deploy/kuberay/rayservice.yaml").read_text("utf-8")))
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    args = config["applications"][0]["args"]
    wanted = sum(region["instances"] for region in args["agents"]["my-agent"]["regions"].values())
    args["folder"], args["stateDir"] = str(stopped.folder), ".swiftclaw"
    args["admin"] = {"port": stopped.admin_port}
    args["gateways"][0].update(host="127.0.0.1", port=stopped.port)
    args["agents"]["my-agent"]["resources"] = {"cpus": 0.01}
    args["agents"]["my-agent"]["scaling"]["downscaleDelay"] = "1h"
    args["agents"]["my-agent"]["timeouts"] = {"request": "4s"}  # as long as sessions keep an instance that drains
    stopped.file.write_text(yaml.safe_dump(config))
    with (stopped.folder / "serve.log").open("wb") as log:
        serve = subprocess.Popen(
            [str(Path(sys.executable).parent / "serve"), "run", "cluster.yaml"],
            cwd=stopped.folder, env=stopped.environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: len(stopped.healthy()) == wanted and len(stopped.gateways()) == 2, f"{wanted} instances and 2 gateways")
        assert get(f"{stopped.url}/-/healthz") == "success"
        assert get(f"{stopped.url}/agents/my-agent/orders/1042")
    finally:
        serve.send_signal(signal.SIGINT)
        serve.wait(60)
