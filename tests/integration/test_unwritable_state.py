"""The state folder is full, unwritable, read-only: commands are refused, nothing changes, requests go on, and `down` works."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Cluster, get

pytestmark = pytest.mark.cluster

REFUSED = {
    "scale shop --instances 2": 1,
    "promote shop --canary 75": 1,
    "rollback shop": 1,
    "rotate-key": 1,
}


def mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


def immutable(folder: Path, wanted: bool) -> bool:
    """Whether it could be set: then not even root creates a file there."""
    sign = "+i" if wanted else "-i"
    return subprocess.run(["chattr", sign, str(folder)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def state(stopped: Cluster) -> Iterator[Path]:
    """The state folder on a small file system of its own."""
    folder = stopped.folder / ".swiftclaw"
    folder.mkdir()
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)):
        pytest.skip("a file system can be mounted by root only")
    yield folder
    immutable(folder, False)
    stopped.run("down")  # its record is in the folder
    while subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False).returncode == 0:
        pass  # the read-only view, then the file system


def shown(cluster: Cluster) -> Any:
    """What an operator sees of the versions and counts."""
    agent = get(f"{cluster.admin}/api/agents/shop")
    rollout = {name: agent["rollout"][name] for name in ("stable", "canary", "percent", "target")}
    return rollout, {name: row["desired"] for name, row in agent["regions"].items()}


def versions(cluster: Cluster) -> set[str]:
    """Those that answer twenty requests."""
    body, headers = json.dumps({"message": "hi"}).encode(), {"content-type": "application/json"}
    found = set()
    for _ in range(20):
        request = urllib.request.Request(f"{cluster.url}/agents/shop/messages", body, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            found.add(answer.headers["x-swiftclaw-version"])
    return found


def test_a_full_an_unwritable_and_a_read_only_state_folder(stopped: Cluster, state: Path) -> None:
    shop = stopped.folder / "shop.py"
    shop.write_text('from swiftclaw import Agent\n\nagent = Agent("shop", model="echo")\n')
    stopped.write({"shop": {"agent": "shop:agent", "regions": {"us-east-1": {"instances": 1}}}}, replicas=1)
    stopped.up()
    assert stopped.run("deploy", "shop", "--canary", "50").returncode == 0
    before = shown(stopped)
    for fault in ("full", "unwritable", "read-only"):
        if fault == "full":
            with pytest.raises(OSError), (state / "fill").open("wb", buffering=0) as fill:
                while True:
                    fill.write(bytes(65536))
        elif fault == "unwritable":
            (state / "fill").unlink()
            if not immutable(state, True):
                continue  # not every file system can
        else:
            immutable(state, False)
            assert mount("--bind", str(state), str(state)) == 0  # Ray's logs are open: the file system itself stays writable
            assert mount("-o", "remount,bind,ro", str(state)) == 0
        for command, status in REFUSED.items():
            done = stopped.run(*command.split())
            assert done.returncode == status, f"{fault}: {command}: {done.stdout}{done.stderr}"
            assert "nothing was changed" in done.stderr, f"{fault}: {command}: {done.stderr}"
        assert shown(stopped) == before
        assert "cannot be written" in " ".join(stopped.run("status").stdout.split()), fault
        assert versions(stopped) == {"v1", "v2"}
        assert list(state.glob(".state*")) == []
    done = stopped.run("down")
    assert done.returncode == 0 and "could not be removed" in done.stderr, done.stdout + done.stderr
