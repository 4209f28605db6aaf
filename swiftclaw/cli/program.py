"""How the user can call this program again, for texts that suggest a command."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def program() -> str:
    """The program's name; where it is not on the PATH, its path."""
    called = Path(sys.argv[0])
    if shutil.which(called.name) or not called.is_file():
        return "swiftclaw"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called.absolute())
