"""Ray and Serve, as `up` and `down` use them: connect, deploy, call the Controller, disconnect.

Everything that imports Ray is here, behind functions. What was deployed keeps running when the driver disconnects.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from swiftclaw.cli.errors import CommandFailed

if TYPE_CHECKING:
    from cluster.desired.rollout_manager import DeployRequest

APP = "swiftclaw"
CALL_S = 30.0
CUT_BEFORE_S = 5.0  # `down` cuts off what is in flight this long before its time is up


class App(NamedTuple):
    """What Serve says of one app."""

    status: str
    message: str


def auth_mode() -> str:
    """Ray's rule for a cluster that it finds or starts: with a token if there is one. Ray itself applies it to a head but
    not to a node that joins it, nor to an address that is given; so it is settled here, for all of them alike."""
    said = os.environ.get("RAY_AUTH_MODE")
    if said is not None:
        return said
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return "token" if named or (Path.home() / ".ray" / "auth_token").is_file() else "disabled"


def reachable(address: str) -> bool:
    """Whether somebody listens there: Ray itself would try for a long time."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3):
            return True
    except (OSError, ValueError):
        return False


def is_here(address: str) -> bool:
    """Whether that is an address of this machine."""
    host = address.rpartition("://")[2].rpartition(":")[0].strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            return True
    except OSError:
        return False


def remembered(folder: Path) -> set[str]:
    """The apps that the Controller says it started, should it not be there to be asked."""
    from cluster.desired.state import Store

    state = Store(folder).load()
    return set(state.apps) if state else set()


@contextlib.contextmanager
def connected(address: str, auth_mode: str = "") -> Iterator[None]:
    """A Ray driver, without Ray's chatter. Raises CommandFailed when the cluster cannot be joined."""
    if "://" not in address and not reachable(address):
        raise CommandFailed(f"no Ray cluster answers at {address}")
    os.environ["RAY_ADDRESS"] = address  # it would win over the argument
    if auth_mode:
        os.environ["RAY_AUTH_MODE"] = auth_mode  # before Ray is imported
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray import serve  # noqa: F401  (configures its loggers, which are then silenced)

    for name in ("ray", "ray.serve", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, namespace=APP, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise CommandFailed(f"cannot join the Ray cluster at {address}: {_first(error)}") from None
    for number, handler in handlers.items():  # Ray's own would abort where ours undo
        signal.signal(number, handler)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where Ray reports on its own actors
            yield
    finally:
        ray.shutdown()


def serving() -> bool:
    """Whether Serve runs on this cluster already."""
    import ray

    return any(actor["namespace"] == "serve" for actor in ray.util.list_named_actors(all_namespaces=True))


def apps() -> dict[str, App]:
    from ray import serve

    return {name: App(str(app.status.value), _message(app)) for name, app in serve.status().applications.items()}


def _message(app: Any) -> str:
    """Of a failed app Serve says only which deployment failed; the deployment says why."""
    details = [one.message for one in app.deployments.values() if one.message and "FAILED" in str(one.status.value)]
    return "\n".join([*details, app.message])


def deploy(args: dict[str, Any], folder: str, here: bool) -> None:
    """Start the Controller's app. Returns when Serve knows of it, not when it runs. `here`: all nodes are on this machine."""
    from ray import serve

    from deployments.app import build

    serve.start(proxy_location="Disabled")
    app = build({**args, "folder": folder, "instanceHost": "127.0.0.1" if here else ""})
    serve.run_many(
        [serve.RunTarget(app, name=APP, route_prefix=None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def current() -> tuple[dict[str, Any], str]:
    """(args, folder) as the Controller wants them now."""
    args, folder = _call("current")
    return args, folder


def apply(args: dict[str, Any], folder: str) -> None:
    """Raises CommandFailed when the Controller does not take them."""
    _call("apply", args, folder)


@contextlib.contextmanager
def of(file: Path) -> Iterator[None]:
    """A driver on the cluster that `up` started or joined for this file. Raises CommandFailed."""
    from swiftclaw.cli import files
    from swiftclaw.cli.local import cluster_record
    from swiftclaw.cli.output import show

    made = cluster_record.load(files.state_dir(file))
    if made is None:
        raise CommandFailed(f"SwiftClaw was not started from {file.absolute().parent}; `{show.program()} up` does that")
    with connected(made.address, made.auth_mode):
        yield


def has_package(digest: str) -> bool:
    """Whether the Controller has that code already."""
    return bool(_call("has_package", digest))


def take_package(digest: str, content: bytes) -> None:
    _call("take_package", digest, content)


def deploy_version(agent: str, wish: DeployRequest) -> tuple[str, str]:
    """(what is done about it, the version); see cluster/desired/rollout_manager.py."""
    done, version = _call("deploy", agent, wish)
    return done, version


def promote(agent: str, percent: float) -> str:
    """The version that is to get that share."""
    return str(_call("promote", agent, percent))


def pause(agent: str, paused: bool) -> str:
    """The version whose analysis pauses or goes on."""
    return str(_call("pause", agent, paused))


def rollback(agent: str) -> str:
    """The version that goes."""
    return str(_call("rollback", agent))


def rotate_session_key() -> None:
    """Raises CommandFailed when the Controller cannot."""
    _call("rotate_session_key")


def scale(agent: str, region: str | None, instances: int) -> str:
    """What was changed. Raises CommandFailed when the Controller does not take it."""
    return str(_call("scale", agent, region, instances))


def take_away(agent: str, instance: str, mode: str, seconds: float) -> None:
    """Raises CommandFailed when it cannot be done."""
    _call("take_away", agent, instance, mode, seconds)


def remove(known: set[str], timeout_s: float, shut_down: bool, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Stop SwiftClaw's apps, draining, then the Controller. `known`: apps that are SwiftClaw's should the Controller not
    answer; `shut_down`: Serve too. Returns the apps that still were there when the time was up.

    Gateways go first: they take no new connections, and what runs through them finishes while the instances are all
    there. What is still in flight shortly before the time is up is cut off by the instances, which tells its clients.
    """
    from ray import serve

    deadline = time.monotonic() + timeout_s
    cut_at = deadline - min(CUT_BEFORE_S, timeout_s / 2)
    try:
        _gone(set(_call("stop_gateways")), cut_at, say)
        ours = set(_call("stop_apps", max(0.0, cut_at - time.monotonic()))) | known
    except CommandFailed:
        ours = known
        for name in ours & apps().keys():
            serve.delete(name, _blocking=False)
    left = _gone(ours, deadline, say)
    if APP in apps():
        serve.delete(APP)
    if shut_down and not apps():
        serve.shutdown()
    return sorted(left)


def _gone(names: set[str], deadline: float, say: Callable[[str], None]) -> set[str]:
    """Wait until these apps are gone, saying for what; those that are not when the time is up."""
    while (left := names & apps().keys()) and time.monotonic() < deadline:
        say(waiting_for(_in_flight(), left))
        time.sleep(0.3)
    return left


def waiting_for(in_flight: Mapping[str, int], apps: Collection[str]) -> str:
    """One line on what a drain waits for: requests by agent, else processes."""
    busy = [f"{count} {'request' if count == 1 else 'requests'} of {agent}" for agent, count in in_flight.items() if count]
    if busy:
        return f"draining: waiting for {' and '.join(busy)}"
    what = "gateways" if all(name.startswith("gateway.") for name in apps) else "instances"
    return f"draining: waiting for the {what} to stop"


def _in_flight() -> dict[str, int]:
    try:
        counts: dict[str, int] = _call("in_flight")
    except CommandFailed:  # it is not needed for stopping
        return {}
    return counts


def _call(method: str, *arguments: Any) -> Any:
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import RayServeException

    try:
        return getattr(serve.get_app_handle(APP), method).remote(*arguments).result(timeout_s=CALL_S)
    except TimeoutError:
        raise CommandFailed(f"the Controller did not answer within {CALL_S:.0f} s") from None
    except RayServeException as error:
        raise CommandFailed(f"the Controller does not run: {_first(error)}") from None
    except RayActorError:
        raise CommandFailed("the Controller went away while it was asked; `swiftclaw status` shows what came of it") from None
    except Exception as error:  # Ray gives what the method raised a type of its own
        raise CommandFailed(f"the Controller refused: {_first(getattr(error, 'cause', None) or error)}") from None


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
