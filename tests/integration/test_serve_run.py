"""`serve run cluster.yaml` alone: Ray's own command, one node, no labels."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Cluster, get, my_agent, until

pytestmark = pytest.mark.cluster


def test_serve_run_brings_up_gateways_and_agents_and_ends_with_ctrl_c(stopped: Cluster) -> None:
    stopped.write({"my-agent": my_agent(timeouts={"request": "4s"})})  # as long as sessions keep an instance that drains
    with (stopped.folder / "serve.log").open("wb") as log:
        serve = subprocess.Popen(
            [str(Path(sys.executable).parent / "serve"), "run", "cluster.yaml"],
            cwd=stopped.folder, env=stopped.environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: len(stopped.healthy()) == 7 and len(stopped.gateways()) == 2, "7 instances and 2 gateways")
        status = get(f"{stopped.admin}/api/status")
        assert any("logical" in warning for warning in status["warnings"]), status["warnings"]
        assert get(f"{stopped.url}/-/healthz") == "success"
        assert get(f"{stopped.url}/agents/my-agent/orders/1042")
    finally:
        serve.send_signal(signal.SIGINT)
        serve.wait(60)
