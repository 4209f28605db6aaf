"""The progress lines of `down`."""

from __future__ import annotations

import pytest

from swiftclaw.cli.ray_cluster.serve_apps import waiting_for


@pytest.mark.parametrize(
    ("in_flight", "apps", "line"),
    [
        ({"a": 1}, {"gateway.us"}, "draining: waiting for 1 request of a"),
        ({"a": 3, "b": 0, "c": 1}, {"gateway.us", "a.v1.us"}, "draining: waiting for 3 requests of a and 1 request of c"),
        ({"a": 0}, {"gateway.us", "gateway.eu"}, "draining: waiting for the gateways to stop"),
        ({}, {"a.v1.us", "gateway.us"}, "draining: waiting for the instances to stop"),
    ],
)
def test_it_names_the_agents_with_requests_in_flight_else_the_processes(
    in_flight: dict[str, int], apps: set[str], line: str
) -> None:
    assert waiting_for(in_flight, apps) == line
