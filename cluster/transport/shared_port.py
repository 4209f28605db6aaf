"""How does one of several processes leave a port that they share (SO_REUSEPORT) without refusing a connection?

The kernel resets the connections that wait in the queue of a listening socket when the socket is closed. So the leaving
process first drops new handshakes: its socket gets a filter that discards SYN segments, while handshakes that have begun are
completed and accepted. A client whose SYN was dropped repeats it after a second, by TCP's own rules, and reaches one of the
other processes. Linux only; elsewhere nothing is dropped. See socket(7), SO_ATTACH_FILTER.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

SO_ATTACH_FILTER = 26
LEAVE_S = 0.5  # longer than a handshake takes, shorter than a client waits until it repeats its SYN
# Classic BPF; the filter of a TCP socket sees the segment from its header on, and byte 13 has the flags.
_PROGRAM = (
    (0x30, 0, 0, 13),  # load the flags
    (0x54, 0, 0, 0x12),  # of them, SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone: a new handshake
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # keep
)


def drop_handshakes(listening: socket.socket) -> bool:
    """Drop new handshakes on this socket. False where the system cannot."""
    if sys.platform != "linux":
        return False
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _PROGRAM))
    try:
        program = struct.pack("HP", len(_PROGRAM), ctypes.addressof(code))
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    except OSError:
        return False
    return True
