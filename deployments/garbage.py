"""Keeps Python's garbage collector from the event loop's time.

A whole collection looks at every object, and a process with Ray in it has more than a hundred thousand that never go away: it
would hold the loop for a tenth of a second now and then.
"""

from __future__ import annotations

import gc


def keep_what_is_here() -> None:
    """Call once a process has started: no collection looks again at what has been imported and built so far."""
    gc.collect()
    gc.freeze()
