"""What users import: `Agent` to write one, `connect` to call one that runs.

    from swiftclaw import Agent, connect

`connect` needs Ray and is imported when it is first asked for: a file that defines an agent stays light.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from swiftclaw.agent import Agent

if TYPE_CHECKING:
    from swiftclaw.client import connect

__all__ = ["Agent", "__version__", "connect"]


def __getattr__(name: str) -> Any:
    if name == "connect":
        from swiftclaw.client import connect

        return connect
    if name == "__version__":
        try:
            return metadata.version("swiftclaw")
        except metadata.PackageNotFoundError:  # run from its folder, never installed
            return "unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
