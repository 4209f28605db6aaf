"""SwiftClaw's Serve apps: the status of each, deploying the Controller's, and stopping them all with a drain."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.ray_cluster import controller

ABORT_BEFORE_S = 5.0  # `down` aborts requests in flight this long before its time limit
POLL_S = 0.3


class ServeApp(NamedTuple):
    """One app as Serve reports it."""

    status: str
    message: str


def serve_is_running() -> bool:
    import ray

    return any(actor["namespace"] == "serve" for actor in ray.util.list_named_actors(all_namespaces=True))


def statuses() -> dict[str, ServeApp]:
    """By the app's name."""
    from ray import serve

    return {name: ServeApp(str(app.status.value), _message(app)) for name, app in serve.status().applications.items()}


def _message(app: Any) -> str:
    """A failed app names only the deployment that failed; that deployment's own message has the reason."""
    details = [one.message for one in app.deployments.values() if one.message and "FAILED" in str(one.status.value)]
    return "\n".join([*details, app.message])


def recorded(folder: Path) -> set[str]:
    """The apps in the state file, for when the Controller cannot be asked."""
    from cluster.desired.state import Store

    state = Store(folder).load() if folder.is_dir() else None
    return set(state.apps) if state else set()


def deploy(args: dict[str, Any], folder: str, local: bool) -> None:
    """Deploy the Controller's app. Returns when Serve has accepted it. `local`: every node is on this machine."""
    from ray import serve

    from deployments.app import build

    serve.start(proxy_location="Disabled")
    app = build({**args, "folder": folder, "instanceHost": "127.0.0.1" if local else ""})
    serve.run_many(
        [serve.RunTarget(app, name=controller.APP, route_prefix=None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def stop(
    recorded: set[str], timeout_s: float, shut_down_serve: bool, report: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Drain and delete SwiftClaw's apps, the Controller's last. Returns the apps that are left when the time is up.

    `recorded`: the apps to delete when the Controller does not reply. Gateways stop first: they accept no new connections,
    and their requests finish while all instances still run. Shortly before the time is up the instances abort what is
    still in flight, so that its clients get an error instead of a silent disconnect.
    """
    from ray import serve

    deadline = time.monotonic() + timeout_s
    abort_at = deadline - min(ABORT_BEFORE_S, timeout_s / 2)
    try:
        _wait_until_gone(set(controller.stop_gateways()), abort_at, report)
        apps = set(controller.stop_apps(max(0.0, abort_at - time.monotonic()))) | recorded
    except CommandFailed:
        apps = recorded
        for name in apps & statuses().keys():
            serve.delete(name, _blocking=False)
    left = _wait_until_gone(apps, deadline, report)
    if controller.APP in statuses():
        serve.delete(controller.APP)
    if shut_down_serve and not statuses():
        serve.shutdown()
    return sorted(left)


def _wait_until_gone(apps: set[str], deadline: float, report: Callable[[str], None]) -> set[str]:
    """The apps that are left at the deadline; `report` gets a line about what the drain is waiting for."""
    while (left := apps & statuses().keys()) and time.monotonic() < deadline:
        report(waiting_for(_in_flight(), left))
        time.sleep(POLL_S)
    return left


def waiting_for(in_flight: Mapping[str, int], apps: Collection[str]) -> str:
    """What a drain is waiting for: requests by agent; without any, the processes."""
    busy = [f"{count} {'request' if count == 1 else 'requests'} of {agent}" for agent, count in in_flight.items() if count]
    if busy:
        return f"draining: waiting for {' and '.join(busy)}"
    processes = "gateways" if all(name.startswith("gateway.") for name in apps) else "instances"
    return f"draining: waiting for the {processes} to stop"


def _in_flight() -> dict[str, int]:
    try:
        return controller.in_flight()
    except CommandFailed:  # only the progress line needs it
        return {}
