"""What users import: `Agent` to write an agent, `connect` to call a running one.

    from swiftclaw import Agent, connect

`connect` needs Ray and is imported on first use, so that a file that only defines an agent stays fast to import.
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
        except metadata.PackageNotFoundError:  # run from the source folder, not installed
            return "unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
