"""What the checker answers with: the rules, the violations of them, and how often a failure was excused and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

RULES = {
    # answers
    "in-time": "every request ends within its time",
    "right-answer": "an answer is the answer to that very request",
    "named": "every request is answered, refused by name, or fails by name; only its gateway's death breaks a connection",
    "may-fail": "a request fails only if what it was in flight on died or froze, or if no instance could take it",
    "not-early": "a request is given up as too slow only when its time is over",
    # executions
    "once": "a request that is not repeatable runs at most once",
    "repeats": "a repeatable request runs at most once on each process, and no oftener than retry.attempts allow",
    "who-ran": "the process that answered a request ran it",
    "refused-not-run": "a request that was refused did not run",
    # sessions
    "home": "a session stays with its home while that can take it",
    "memory": "a session's home counts each of its turns once",
    # processes and health
    "alive": "no process ends unless a fault or an operator ended it",
    "healthy": "no instance is unhealthy and no circuit open unless a fault touched the instance",
    "noticed": "an instance whose health check reports unhealthy is shown as unhealthy",
    "in-rotation": "no new request runs on an instance that is shown as unhealthy",
    "admin": "the admin port answers unless the Controller was killed or frozen",
    "status": "a process that is dead is not shown as running",
    # operators
    "exit": "a command succeeds, or is refused with a reason; it prints no traceback and ends in time",
    "effect": "a command that succeeded has its effect",
    "no-effect": "a command that was refused has no effect",
    "drill": "`swiftclaw test failover` passes unless another fault was under way",
    # counts
    "counts": "/metrics counts what clients saw, to the request",
    "lives": "over all lives of the Controller /metrics counts what clients saw",
    # the end
    "has-end": "every request that began has an end, and the record is whole",
    "settled": "after quiet everything is back",
    "zero": "after quiet nothing is in flight",
    "down": "`swiftclaw down` succeeds",
    "orphans": "no process is left after `down`",
    "files": "no temporary file is left after `down`",
    "logs": "no traceback in a log, but those of versions that were made to fail",
    "in-flight": "a request that is in flight is counted by the instance that is shown",
    "flat": "memory, file descriptors and threads of a process stay flat",
}


@dataclass(frozen=True)
class Tolerances:
    """All slacks, in seconds unless the name says otherwise. A noisy machine may widen them."""

    late_s: float = 1.0  # beyond a request's time
    early_s: float = 0.6  # before it: clients and gateways do not start their clocks at once
    break_s: float = 2.0  # from a gateway's death to when the client has seen it
    closing_s: float = 1.0  # from a gateway's kill to when its sockets, with the connections that wait in them, are closed
    listing_s: float = 1.0  # a connection as young as this when the clients of a gateway were listed may be missing there
    death_s: float = 0.7  # before a process's death was noted: clients may have seen it
    ending_s: float = 0.5  # from when a process, with its sockets, is gone to when its death was noted
    seen_s: float = 5.0  # from an instance's death to when the last of its requests has failed
    breaker_s: float = 3.0  # after a freeze began or ended, in which gateways learn of it
    learn_s: float = 2.0  # in which a gateway learns what the Controller shows
    heal_s: float = 15.0  # after a fault, until the instance it touched is healthy and its circuit closed
    version_s: float = 60.0  # after the deploy of a bad version ended, until all of it is gone
    dead_shown_s: float = 15.0  # from a process's death to when it is no longer shown as healthy
    admin_s: float = 30.0  # from the Controller's death to when the admin port answers again
    admin_pause_s: float = 3.0  # an admin port that does not answer for less is no violation
    effect_s: float = 45.0  # from a command's end to its effect
    unseen_share: float = 0.2  # of the looks at long requests: in flight, and the admin port showed none
    refused_s: float = 15.0  # after a refused command: what was under way before it has ended by then
    end_s: float = 2.0  # a command that ended so close to the end of the faults was stopped with them
    per_life_requests: float = 120.0  # requests between the reading of /metrics and the Controller's death
    warm_up_s: float = 60.0  # of a process's life: what it takes then is no leak
    memory_kib: int = 40 << 10  # growth after that
    memory_kib_per_s: float = 80.0  # and per second of life
    files: int = 60
    threads: int = 40


@dataclass(frozen=True)
class Violation:
    """One rule, broken once."""

    rule: str
    text: str
    at: float = 0.0  # seconds since the load's start; 0: at no moment
    faults: tuple[str, ...] = ()  # those around it
    requests: tuple[str, ...] = ()
    processes: tuple[int, ...] = ()
    client: str = ""  # what the client saw


@dataclass
class Verdict:
    """The checker's answer on one record. `moves`: of sessions, by cause."""

    violations: list[Violation] = field(default_factory=list)
    excused: Counter[str] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)
