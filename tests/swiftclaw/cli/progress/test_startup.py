"""What `up` waits for, what it reports as missing, and what it treats as a failure."""

from __future__ import annotations

from typing import Any

import pytest

from swiftclaw.cli.progress.startup import StartupProgress, brief, of_controller, of_status, with_versions

EDGES = {("127.0.0.1", 8000, "us"): 2}


def gateways(number: int, port: int = 8000) -> list[dict[str, Any]]:
    return [{"host": "127.0.0.1", "port": port, "region": "us"}] * number


def status(healthy: int = 2, edges: int = 2, **changes: Any) -> dict[str, Any]:
    return {
        "agents": [{"name": "a", "regions": {"us": {"instances": 2, "healthy": healthy}}}],
        "gateways": gateways(edges),
        "apps": {},
        "problems": {},
        **changes,
    }


def test_startup_is_done_when_every_instance_and_gateway_runs() -> None:
    assert of_status(status(), EDGES).done
    assert not of_status(status(healthy=1), EDGES).done
    assert not of_status(status(edges=1), EDGES).done


def test_an_agent_unknown_to_the_controller_is_missing() -> None:
    assert of_status(status(), EDGES, ["a"]).done
    assert of_status(status(), EDGES, ["a", "b"]).missing == ["agent b: waiting for the Controller to add it"]


def test_a_gateway_of_another_address_does_not_count() -> None:
    progress = of_status(status(gateways=gateways(2, port=9000)), EDGES)
    assert progress.missing == ["0 of 2 gateways running on 127.0.0.1:8000 in us"]


def test_progress_reads_as_a_line() -> None:
    assert str(of_status(status(healthy=1), EDGES)) == "1 of 2 instances healthy"
    assert str(of_status(status(edges=0), EDGES)) == "2 of 2 instances healthy, 0 of 2 gateways running on 127.0.0.1:8000 in us"
    assert str(of_controller("", failed=False)) == "waiting for the Controller"


def test_a_missing_instance_comes_with_serves_reason() -> None:
    apps = {"a.v1.us": {"status": "DEPLOYING", "message": "2 replicas wait for 4 CPUs"}}
    progress = of_status(status(healthy=0, apps=apps), EDGES)
    assert progress.missing == ["agent a in us: 0 of 2 instances healthy (2 replicas wait for 4 CPUs)"]
    assert not progress.failed


@pytest.mark.parametrize(
    "message",
    [
        "A replica's health check failed. This deployment will be UNHEALTHY until the replica recovers or a new deploy.",
        "A replica failed to start with exception. Retrying.",
    ],
)
def test_an_app_whose_lost_process_is_being_replaced_is_waited_for(message: str) -> None:
    progress = of_status(status(healthy=1, apps={"a.v1.us": {"status": "UNHEALTHY", "message": message}}), EDGES)
    assert not progress.failed
    assert progress.missing == [f"agent a in us: 1 of 2 instances healthy ({message})"]


def test_an_app_that_serve_gave_up_on_is_a_failure() -> None:
    apps = {"a.v1.us": {"status": "UNHEALTHY", "message": "The deployment failed to start 3 times in a row."}}
    assert of_status(status(apps=apps), EDGES).failed == ["a.v1.us: The deployment failed to start 3 times in a row."]


def test_a_problem_and_a_failed_app_are_failures_named_once() -> None:
    apps = {"a.v1.us": {"status": "DEPLOY_FAILED", "message": "Failed to update"}}
    assert of_status(status(apps=apps), EDGES).failed == ["a.v1.us: Failed to update"]
    problems = {"a.v1.us": "No module named 'x'"}
    assert of_status(status(apps=apps, problems=problems), EDGES).failed == ["a.v1.us: No module named 'x'"]


def test_a_controller_that_cannot_start_is_a_failure() -> None:
    assert of_controller("boom", failed=True).failed == ["swiftclaw: boom"]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("", "no reason given"),
        ("one line", "one line"),
        ("it failed.\nsee the logs", "it failed."),
        ("failed. Error:\nTraceback (most recent call last):\n  File x\nValueError: no agent\n", "ValueError: no agent"),
        ("failed\n\x1b[36mray::X()\x1b[39m\n  File y\nlistener.PortInUse: in use\nend", "listener.PortInUse: in use"),
    ],
)
def test_a_long_message_is_reduced_to_the_line_that_tells_what_happened(message: str, sentence: str) -> None:
    assert brief(message) == sentence


def test_a_rollout_in_progress_is_missing_and_one_rolled_back_is_a_failure() -> None:
    def progress(**rollout: Any) -> StartupProgress:
        reply = status()
        idle = {"stable": "v1", "canary": None, "percent": 0, "target": 0, "last": ""}
        reply["agents"][0]["rollout"] = {**idle, **rollout}
        return with_versions(of_status(reply, EDGES), reply, {"a": "v2"})

    assert progress(canary="v2", target=100).missing == ["v2 of agent a: waiting for 100 % of the traffic"]
    assert progress(last="v2 was rolled back: ill").failed == ["a: v2 was rolled back: ill"]
    assert progress(stable="v2").done and progress(stable="v3", last="v3 replaced v1 as the stable version").done
