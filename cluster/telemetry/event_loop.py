"""How much unfinished work does this process's event loop hold? A number that grows without end is a leak."""

from __future__ import annotations

import asyncio


def unfinished_tasks() -> int:
    """Unfinished tasks of the running event loop; 0 outside of one."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
