"""How an instance stops: the stages of `Lifecycle` one after the other, until no request runs on it any more.

It drains (only sessions bound to it are served), stops accepting, refuses late requests, and is empty in the end. How long
each stage lasts is decided in policies/lifecycle/draining.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from deployments.instance.lifecycle import Lifecycle
from deployments.instance.server import InstanceServer
from policies.lifecycle.draining import SETTLE_S, Drain, DrainTerms

log = logging.getLogger("swiftclaw.instance")

POLL_S = 0.05
DEREGISTER_S = 5.0  # how long the Controller may take to answer
CANCEL_S = 2.0  # how long a cancelled request may take to send its client the error


async def drain_terms(
    deregister: Callable[[], Awaitable[DrainTerms | None]], last_known: DrainTerms, within_s: float = DEREGISTER_S
) -> DrainTerms:
    """The Controller's terms, which it answers a deregistration with; without an answer, the last known ones.

    None from the Controller: the agent was removed, so that no request of a session will arrive.
    """
    try:
        terms = await asyncio.wait_for(deregister(), within_s)
    except Exception as error:
        log.info("could not deregister from the Controller; draining with the last known settings: %r", error)
        return last_known
    return terms or replace(last_known, keep_sessions=False)


async def drain_server(server: InstanceServer, drain: Drain) -> None:
    """Returns when the server is empty, or when what still runs does not end although it was cancelled."""
    server.advance(Lifecycle.DRAINING)
    had_sessions = False
    while drain.takes_requests(now := time.monotonic(), server.session_at):
        had_sessions = now >= drain.began + SETTLE_S
        await _poll(server, drain)
    server.advance(Lifecycle.STOPPED_ACCEPTING)
    if had_sessions:  # gateways need time to send them elsewhere before they are refused: not every request can be repeated
        await asyncio.sleep(SETTLE_S)
    server.advance(Lifecycle.CLOSING)
    while server.in_flight and time.monotonic() < drain.ends_at + CANCEL_S:
        await _poll(server, drain)


async def _poll(server: InstanceServer, drain: Drain) -> None:
    server.cancel_overdue(lambda arrived_at, started: drain.is_overdue(time.monotonic(), arrived_at, started))
    await asyncio.sleep(POLL_S)
