"""What an instance does from the moment it says that it leaves until nothing runs on it any more.

Draining (only sessions that live here) -> stopped (gateways send nothing) -> refusing (a straggler goes elsewhere) ->
empty. How long each takes is decided in policies/lifecycle/draining.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from deployments.instance.server import InstanceServer
from policies.lifecycle.draining import SETTLE_S, Drain, DrainTerms

log = logging.getLogger("swiftclaw.instance")

LOOK_EVERY_S = 0.05
GOODBYE_S = 5.0  # for the Controller to hear that it leaves
CUT_S = 2.0  # for a request that was cut off: to tell its client


async def terms_of_leaving(
    say_goodbye: Callable[[], Awaitable[DrainTerms | None]], remembered: DrainTerms, within_s: float = GOODBYE_S
) -> DrainTerms:
    """The Controller's terms, which it gives to whoever says goodbye; those of last time when it is away.

    None from the Controller: the agent is gone, so that nobody will come for its sessions.
    """
    try:
        terms = await asyncio.wait_for(say_goodbye(), within_s)
    except Exception as error:
        log.info("the Controller was not told: %r", error)
        return remembered
    return terms or replace(remembered, keep_sessions=False)


async def drained(answering: InstanceServer, drain: Drain) -> None:
    """Returns when it is empty, or when what is left does not end although it was cut off."""
    answering.drain()
    had_sessions = False
    while drain.takes_requests(now := time.monotonic(), answering.session_at):
        had_sessions = now >= drain.began + SETTLE_S
        answering.cut(lambda arrived, started: drain.is_overdue(time.monotonic(), arrived, started))
        await asyncio.sleep(LOOK_EVERY_S)
    answering.part()
    if had_sessions:  # they have to be sent elsewhere before they are refused: not every request can be sent again
        await asyncio.sleep(SETTLE_S)
    answering.close()
    while answering.in_flight and time.monotonic() < drain.ends_at + CUT_S:
        answering.cut(lambda arrived, started: drain.is_overdue(time.monotonic(), arrived, started))
        await asyncio.sleep(LOOK_EVERY_S)
