"""Why have the sessions of an instance lost their home? The cause of each move, as events and metrics name it.

While the instance is in the snapshot, its state is the cause; after that, the state that it left with. A gateway that started
later does not know: its cause is `unknown`. The count is in policies/sessions/moved.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from cluster.instance_state import DRAINING, EJECTED, STOPPED, UNHEALTHY, InstanceState
from deployments.balancing.backend import Backend
from policies.sessions.moved import Cause

REMEMBERED = 1_000  # instances that have left
PRESENT: Mapping[InstanceState, Cause] = {
    DRAINING: "drained", STOPPED: "drained", UNHEALTHY: "unhealthy", EJECTED: "unresponsive"
}  # fmt: skip


class LostHomes:
    """The instances of one agent that have left the snapshot, and how."""

    def __init__(self) -> None:
        self._causes: OrderedDict[str, Cause] = OrderedDict()  # by replica, the oldest first

    def __contains__(self, replica: str) -> bool:
        return replica in self._causes

    def left(self, replica: str, state: InstanceState) -> None:
        """The instance is no longer in the snapshot, or will soon not be; `state` was its last one."""
        drained = state in (DRAINING, STOPPED) or self._causes.get(replica) == "drained"
        self._causes[replica] = "drained" if drained else "died"
        if len(self._causes) > REMEMBERED:
            self._causes.popitem(last=False)

    def cause(self, replica: str, backends: Mapping[str, Backend]) -> Cause:
        """Why the sessions of the instance have to move. `backends`: the instances in the snapshot, by replica."""
        backend = backends.get(replica)
        if backend is None:
            return self._causes.get(replica, "unknown")
        by_state = PRESENT.get(backend.member.state)
        return self._causes.get(replica, "died") if by_state is None else by_state  # else: it has refused a connection
