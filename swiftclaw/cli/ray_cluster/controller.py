"""The calls that commands make to the Controller, through its Serve handle. They need an open driver.

Each call is written against the protocol that the Controller serves (cluster/controller_api.py), so the type checker compares
arguments and results on both sides; it is not imported at run time, which would take seconds. All of them raise CommandFailed
when the Controller is not running, does not reply in time, or rejects the request.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from swiftclaw.cli import files
from swiftclaw.cli.errors import CommandFailed, first_line

if TYPE_CHECKING:
    from cluster.controller_api import OperatorApi
    from cluster.desired.rollout_manager import DeployRequest

T = TypeVar("T")

APP = "swiftclaw"  # the Serve app with the Controller
REPLY_S = 30.0
SEE_STATUS = "run `swiftclaw status` to see whether the change was applied"


def current() -> tuple[dict[str, Any], str]:
    """(args, folder): the configuration that the Controller works towards."""
    return _call(lambda controller: controller.current())


def admin_url() -> str:
    """The URL of the admin port, as seen from this machine."""
    block = current()[0].get("admin") or {}
    return files.url(str(block.get("host", files.DEFAULT_HOST)), block.get("port", files.DEFAULT_PORT))


def apply(args: dict[str, Any], folder: str) -> None:
    """Replace the configuration."""
    _call(lambda controller: controller.apply(args, folder))


def has_package(digest: str) -> bool:
    """Whether the Controller already has this code package."""
    return _call(lambda controller: controller.has_package(digest))


def upload_package(digest: str, content: bytes) -> None:
    _call(lambda controller: controller.take_package(digest, content))


def deploy(agent: str, request: DeployRequest) -> tuple[str, str]:
    """(outcome, version). Outcome: started | canary | replacing | settings | nothing."""
    return _call(lambda controller: controller.deploy(agent, request))


def promote(agent: str, percent: float) -> str:
    """The canary's version."""
    return _call(lambda controller: controller.promote(agent, percent))


def pause(agent: str, paused: bool) -> str:
    """Pause or resume the canary analysis. Returns the canary's version."""
    return _call(lambda controller: controller.pause(agent, paused))


def rollback(agent: str) -> str:
    """The version that loses its traffic."""
    return _call(lambda controller: controller.rollback(agent))


def rotate_session_key() -> None:
    _call(lambda controller: controller.rotate_session_key())


def scale(agent: str, region: str | None, instances: int) -> str:
    """The change, as a sentence."""
    return _call(lambda controller: controller.scale(agent, region, instances))


def take_out(agent: str, instance: str, mode: str, seconds: float) -> None:
    """Inject a fault for a failover test; `seconds` 0 ends it."""
    _call(lambda controller: controller.take_away(agent, instance, mode, seconds))


def stop_gateways() -> list[str]:
    """The Serve apps that will be gone when the gateways have stopped."""
    return _call(lambda controller: controller.stop_gateways())


def stop_apps(within_s: float) -> list[str]:
    """All Serve apps but the Controller's; requests still in flight after `within_s` seconds are aborted."""
    return _call(lambda controller: controller.stop_apps(within_s))


def in_flight() -> dict[str, int]:
    """Agent -> requests that its instances are working on."""
    return _call(lambda controller: controller.in_flight())


def _not_running(error: Exception) -> str:
    from swiftclaw.cli.ray_cluster import driver

    address = driver.gcs_address()
    if "does not exist" not in str(error) and "no Serve instance" not in str(error):
        return f"the Controller on the Ray cluster at {address} is not running: {first_line(error)}"
    return f"SwiftClaw does not run on the Ray cluster at {address}; start it with `swiftclaw up`, or choose another --address"


class _Remote:
    """Has the Controller's methods: calling one sends it through the handle and returns Serve's pending response, whose
    result is the method's or a Rejected."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, method: str) -> Any:
        return partial(self._handle.operate.remote, method)


def _call(request: Callable[[OperatorApi], Coroutine[Any, Any, T]]) -> T:
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import RayServeException

    from cluster.messages import Rejected

    try:
        response: Any = request(cast("OperatorApi", _Remote(serve.get_app_handle(APP))))
        result: Any = response.result(timeout_s=REPLY_S)
    except TimeoutError:
        raise CommandFailed(f"the Controller did not reply within {REPLY_S:.0f} s; {SEE_STATUS}") from None
    except RayServeException as error:
        raise CommandFailed(_not_running(error)) from None
    except RayActorError:
        raise CommandFailed(f"lost the connection to the Controller before it replied; {SEE_STATUS}") from None
    except Exception as error:  # Ray wraps what the method raised in a type of its own
        reason = first_line(getattr(error, "cause", None) or error)
        raise CommandFailed(f"the Controller failed ({reason}); {SEE_STATUS}, and its log for the cause") from None
    if isinstance(result, Rejected):
        raise CommandFailed(f"the Controller rejected the request: {result.reason}")
    return cast("T", result)
