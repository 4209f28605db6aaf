"""What `up` cannot do it says in a sentence, and leaves nothing behind."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Cluster, get, my_agent, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def fresh(folder: Path) -> Iterator[Cluster]:
    """Nothing runs before, and nothing may run after."""
    cluster = Cluster(folder)
    yield cluster
    cluster.run("down")
    until(lambda: not cluster.leftovers(), f"no leftovers, but: {cluster.leftovers()}", 30)


def test_an_agent_that_cannot_be_imported_is_named_with_the_reason_and_nothing_is_left(fresh: Cluster) -> None:
    fresh.write({"my-agent": {**my_agent(), "agent": "examples.suport:agent"}})
    done = fresh.run("up")
    assert done.returncode == 1
    assert "examples.suport:agent" in done.stderr and "No module named" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    until(lambda: not fresh.leftovers(), f"no leftovers, but: {fresh.leftovers()}", 30)


@pytest.mark.parametrize("which", ["gateway", "admin"])
def test_a_port_in_use_is_named_and_nothing_is_left(fresh: Cluster, which: str) -> None:
    fresh.write({"my-agent": my_agent()})
    port = fresh.port if which == "gateway" else fresh.admin_port
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = fresh.run("up")
    assert done.returncode == 1
    assert f"{port}" in done.stderr and "in use" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not fresh.leftovers()


def test_a_broken_change_is_undone_and_what_ran_goes_on(shared: Cluster) -> None:
    agents = {"my-agent": {"agent": "examples.support:agent", "regions": {"us-east-1": {"instances": 1}}}}
    shared.write(agents)
    shared.up()
    before = shared.healthy()
    shared.write({**agents, "second": {"agent": "examples.suport:agent"}})
    done = shared.run("up")
    assert done.returncode == 1 and "No module named" in done.stderr
    until(lambda: [agent["name"] for agent in get(f"{shared.admin}/api/agents")] == ["my-agent"], "the old state again", 60)
    assert shared.healthy() == before
