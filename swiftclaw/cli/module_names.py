"""Names of the user's modules that are SwiftClaw's own.

Ray puts the folder that `up` runs in first on the import path of its workers, and an instance does the same with the folder of
cluster.yaml: a `policies.py` there would be imported by SwiftClaw's own processes, even if no agent uses it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

OURS = ("cluster", "deployments", "policies", "swiftclaw")


def conflicts(folders: Iterable[Path], targets: Iterable[str]) -> list[str]:
    """One sentence for each module in a folder that hides a package of SwiftClaw, or that one of SwiftClaw's hides.

    `targets`: the `agent:` settings, `module:attribute`.
    """
    used = {target.partition(":")[0].partition(".")[0] for target in targets}
    return [
        f"{module}: SwiftClaw has a package named {name!r}, and its processes would import the wrong one; rename yours"
        for folder in dict.fromkeys(folder.resolve() for folder in folders)
        for name in OURS
        if (module := _foreign(folder, name, name in used)) is not None
    ]


def _foreign(folder: Path, name: str, used: bool) -> Path | None:
    """The user's module of that name, if it and SwiftClaw's package cannot both be imported."""
    ours = _origin(find_spec(name))
    found = PathFinder.find_spec(name, [str(folder), *sys.path])
    if found is not None and _origin(found) != ours:
        return _origin(found) or folder / name
    package = folder / name  # a folder without __init__.py: SwiftClaw's package is found first, and the agent's module is not
    return package if used and package.is_dir() and ours is not None and package != ours.parent else None


def _origin(spec: object) -> Path | None:
    origin = getattr(spec, "origin", None)
    return Path(origin).resolve() if origin else None
