"""Where does a gateway process run, and as what? What the parts of one need to know about their process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.config import GatewaySettings


@dataclass(frozen=True)
class GatewayPlace:
    """Known to the Serve replica, which passes it on to its workers."""

    name: str  # unique among all processes that ever count requests
    app: str  # the Serve app
    settings: GatewaySettings
    cluster: str  # Ray's name of the session: the gateways of a node share a folder by it
    node: str  # Ray's id
    host: str  # where it listens for other gateways
    logs: Path
    worker_of: str = ""  # the gateway that started this process
