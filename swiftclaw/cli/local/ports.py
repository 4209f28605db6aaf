"""Free ports: those that SwiftClaw must have, and those that Ray may have any of."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from typing import TYPE_CHECKING

from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.local import processes

if TYPE_CHECKING:
    from cluster.config import Settings


def required(settings: Settings) -> dict[tuple[str, int], str]:
    """(host, port) -> the setting that names it."""
    wanted = {(gateway.host, gateway.port): f"gateways[{i}].port" for i, gateway in enumerate(settings.gateways)}
    return {**wanted, (settings.admin.host, settings.admin.port): "admin.port"}


def demand(settings: Settings, *, here: bool) -> None:
    """Raises CommandFailed for a port that is in use. `here`: everything will run on this machine, so other reasons count."""
    for (host, port), setting in required(settings).items():
        try:
            _try(host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CommandFailed(
                    f"port {port} on {host} is in use{processes.holder(port)}; stop what uses it, "
                    f"or set another {setting} in cluster.yaml"
                ) from None
            if here:
                raise CommandFailed(f"cannot listen on {host}:{port} ({setting}): {error.strerror or error}") from None


def free(preferred: int, taken: Collection[int]) -> int:
    """`preferred` if it is free on every address, else any that is; never one of `taken`."""
    candidate = preferred
    while True:
        if candidate not in taken:
            try:
                return _try("", candidate)
            except OSError:
                pass
        candidate = 0


def _try(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)  # with SO_REUSEADDR it is this that fails when another program listens
        return int(probe.getsockname()[1])
