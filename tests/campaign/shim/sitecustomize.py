"""A wall clock that can be stepped while the process runs: Python imports this first where its folder is in PYTHONPATH.

`time.time` and `time.time_ns` add an offset, which is read from a file of this process that the campaign writes to: no other
process of the machine notices. Monotonic time is as it was. `datetime.now()` is not shifted; nothing here depends on it.
"""

import mmap
import os
import struct
import time

FOLDER = os.environ.get("CAMPAIGN_CLOCKS", "")
SIZE = 8  # bytes: the offset, a double of seconds


def _shift(folder):
    """A process begins with the offset of `all`."""
    own = os.path.join(folder, str(os.getpid()))  # noqa: PTH118 (this runs in every process, before anything is imported)
    try:
        with open(os.path.join(folder, "all"), "rb") as everyone:  # noqa: PTH118, PTH123
            begin = everyone.read(SIZE)
        with open(own, "wb+") as file:  # noqa: PTH123
            file.write(begin)
            file.flush()
            offset = mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return
    read, unpack = time.time, struct.Struct("d").unpack_from

    def shifted():
        return read() + unpack(offset)[0]

    time.time = shifted
    time.time_ns = lambda: int(shifted() * 1e9)


if FOLDER:
    _shift(FOLDER)
