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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from swiftclaw.cli.errors import Refused

APP = "swiftclaw"
CALL_S = 30.0


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
    from cluster.state import Store

    state = Store(folder).load()
    return set(state.apps) if state else set()


@contextlib.contextmanager
def connected(address: str, auth_mode: str = "") -> Iterator[None]:
    """A Ray driver, without Ray's chatter. Raises Refused when the cluster cannot be joined."""
    if "://" not in address and not reachable(address):
        raise Refused(f"no Ray cluster answers at {address}")
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
        raise Refused(f"cannot join the Ray cluster at {address}: {_first(error)}") from None
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
    """Raises Refused when the Controller does not take them."""
    _call("apply", args, folder)


def rotate_session_key() -> None:
    """Raises Refused when the Controller cannot."""
    _call("rotate_session_key")


def remove(known: set[str], timeout_s: float, shut_down: bool) -> list[str]:
    """Stop SwiftClaw's apps, draining, then the Controller. `known`: apps that are SwiftClaw's should the Controller not
    answer; `shut_down`: Serve too. Returns the apps that still were there when the time was up."""
    from ray import serve

    deadline = time.monotonic() + timeout_s
    try:
        ours = set(_call("stop_apps")) | known
    except Refused:
        ours = known
        for name in ours & apps().keys():
            serve.delete(name, _blocking=False)
    while (left := ours & apps().keys()) and time.monotonic() < deadline:
        time.sleep(0.3)
    if APP in apps():
        serve.delete(APP)
    if shut_down and not apps():
        serve.shutdown()
    return sorted(left)


def _call(method: str, *arguments: Any) -> Any:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return getattr(serve.get_app_handle(APP), method).remote(*arguments).result(timeout_s=CALL_S)
    except TimeoutError:
        raise Refused(f"the Controller did not answer within {CALL_S:.0f} s") from None
    except RayServeException as error:
        raise Refused(f"the Controller does not run: {_first(error)}") from None
    except Exception as error:  # Ray gives what the method raised a type of its own
        raise Refused(f"the Controller refused: {_first(getattr(error, 'cause', None) or error)}") from None


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
