"""What may be called at the Controller? By instances and gateways (`ControlApi`), by the command line (`OperatorApi`).

Both ends share these protocols: a caller names a method by its function here (`ControlApi.observe`), so that types are
checked on both sides, and the Controller serves exactly the methods that stand here. How calls travel:
cluster/transport/rpc.py for instances and gateways, a Serve handle for the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from cluster.messages import GatewayHello, Observation, Registration, RegistrationReply, Snapshot, StartPermit, StartRequest
from cluster.transport.rpc import Methods
from policies.lifecycle.draining import DrainTerms

if TYPE_CHECKING:  # gateways and their workers need none of what the Controller is made of
    from cluster.desired.rollout_manager import DeployRequest


class ControlApi(Protocol):
    """For instances and gateways. Every method may be called twice: a call whose connection breaks is repeated."""

    async def request_start(self, request: StartRequest) -> StartPermit:
        """Ask before the agent's code is loaded: an instance that crashes repeatedly waits longer each time."""
        ...

    async def register(self, new: Registration) -> RegistrationReply:
        """Register an instance. It gets its name and the cluster's key."""
        ...

    async def deregister_instance(self, replica: str, agent: str) -> DrainTerms | None:
        """Stop new requests to an instance that is about to stop. None: its agent was removed; no session is waited for."""
        ...

    async def cannot_start(self, app: str, replica: str, reason: str) -> None:
        """Report that a replica of `app` gave up while starting."""
        ...

    async def next_snapshot(self, hello: GatewayHello, version: str | None) -> Snapshot | None:
        """Wait for a snapshot other than `version`, the gateway's own; None when there is none within `POLL_S`."""
        ...

    async def observe(self, observation: Observation) -> None:
        """Report what a gateway counted since its last observation."""
        ...

    async def deregister_gateway(self, gateway: str) -> None:
        """Remove a gateway that stops."""
        ...

    async def gateway_ended(self, gateway: str) -> None:
        """Remove a gateway whose process has died: who started it knows, or found its counts."""
        ...

    async def package(self, digest: str) -> bytes | None:
        """Read a code package (a zip file); None when the Controller does not have it."""
        ...

    async def take_package(self, digest: str, content: bytes) -> None:
        """Store a code package. Raises DamagedPackage."""
        ...


class OperatorApi(Protocol):
    """For the command line, through `operate`, which replies with a Rejected when a method raises ValueError or OSError."""

    async def apply(self, args: dict[str, Any], folder: str) -> None:
        """Apply cluster.yaml. Returns when it is saved and a round of reconciling has started to act on it."""
        ...

    async def current(self) -> tuple[dict[str, Any], str]:
        """(args, folder) of the desired state."""
        ...

    async def deploy(self, agent: str, wish: DeployRequest) -> tuple[str, str]:
        """(started | canary | replacing | settings | nothing, the version)."""
        ...

    async def promote(self, agent: str, percent: float) -> str:
        """Set the canary's share of the traffic; returns its version."""
        ...

    async def pause(self, agent: str, paused: bool) -> str:
        """Pause or resume the canary analysis; returns the canary's version."""
        ...

    async def rollback(self, agent: str) -> str:
        """Send all traffic to the stable version; returns the version that is removed."""
        ...

    async def scale(self, agent: str, region: str | None, instances: int) -> str:
        """Set an instance count; returns the change as a sentence."""
        ...

    async def has_package(self, digest: str) -> bool: ...

    async def take_package(self, digest: str, content: bytes) -> None:
        """Store a code package. Raises DamagedPackage."""
        ...

    async def rotate_session_key(self) -> None:
        """Sign session tokens with a new key; those signed with the previous one stay valid."""
        ...

    async def take_away(self, agent: str, instance: str, mode: str, seconds: float) -> None:
        """Inject a fault (cluster/fleet/fault_injection.py)."""
        ...

    async def stop_gateways(self) -> list[str]:
        """Stop all gateways gracefully; returns their apps."""
        ...

    async def stop_apps(self, within_s: float) -> list[str]:
        """Stop every app; requests in flight are aborted after `within_s`. Returns the apps."""
        ...

    async def in_flight(self) -> dict[str, int]:
        """Agent -> requests in flight on its instances."""
        ...


def method_names(api: type) -> frozenset[str]:
    """The methods that a protocol declares."""
    return frozenset(name for name, member in vars(api).items() if callable(member) and not name.startswith("_"))


def control_methods(controller: ControlApi) -> Methods:
    """For the RpcServer: name -> the Controller's method."""
    return {name: getattr(controller, name) for name in method_names(ControlApi)}
