"""Free ports: the fixed ones that SwiftClaw listens on, and the ones that Ray can choose."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from typing import TYPE_CHECKING

from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.ray_cluster import processes

if TYPE_CHECKING:
    from cluster.config import Settings


def required(settings: Settings) -> dict[tuple[str, int], str]:
    """(host, port) -> the setting with that port."""
    by_address = {(gateway.host, gateway.port): f"gateways[{i}].port" for i, gateway in enumerate(settings.gateways)}
    return {**by_address, (settings.admin.host, settings.admin.port): "admin.port"}


def check_free(settings: Settings, *, local: bool) -> None:
    """Raises CommandFailed for a port that is in use. `local`: all nodes are on this machine, so every other bind error
    (no such address, no permission) counts as well."""
    for (host, port), setting in required(settings).items():
        try:
            _bind(host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CommandFailed(
                    f"port {port} on {host} is in use{processes.holder(port)}; "
                    f"stop that process, or set another {setting} in cluster.yaml"
                ) from None
            if local:
                raise CommandFailed(f"cannot listen on {host}:{port} ({setting}): {error.strerror or error}") from None


def free(preferred: int, taken: Collection[int]) -> int:
    """`preferred` if it is free on every address, else any port that is; never one of `taken`."""
    candidate = preferred
    while True:
        if candidate not in taken:
            try:
                return _bind("", candidate)
            except OSError:
                pass
        candidate = 0


def _bind(host: str, port: int) -> int:
    """The port, after listening on it for a moment. 0: any free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)  # with SO_REUSEADDR this fails, not bind, when another program listens
        return int(probe.getsockname()[1])
