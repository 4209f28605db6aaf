"""The stages of an instance's life, in order. An instance never returns to an earlier stage.

Which stage lasts how long is decided in policies/lifecycle/draining.py and carried out in deployments/instance/draining.py.
"""

from __future__ import annotations

from enum import IntEnum


class Lifecycle(IntEnum):
    SERVING = 0
    DRAINING = 1  # gateways send no new requests, except those of sessions bound to this instance
    STOPPED_ACCEPTING = 2  # gateways send nothing any more
    CLOSING = 3  # a late request is refused as not executed, so that another instance takes it; running requests go on
    ENDED = 4  # open watches end: one would keep its connection, and the port, for nothing
