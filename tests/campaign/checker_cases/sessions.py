"""Sessions that move, and that are remembered."""

from __future__ import annotations

from tests.campaign.checker_cases.registry import AT, breaks, keeps
from tests.campaign.made_up import add_fault, add_turn, fall_ill, kill_instance, show
from tests.campaign.record import Record, Request


def _session(record: Record, *pids: int) -> None:
    for turn, pid in enumerate(pids, start=1):
        add_turn(record, "s", turn, AT + 2 * turn, pid)


def _fails(turn: Request, error: str) -> None:
    turn.outcome, turn.status, turn.error, turn.pid, turn.code = "error", 504 if "timeout" in error else 502, error, 0, ""
    if error == "request_timeout":
        turn.ended = turn.began + 6.0


@breaks("home")
def a_session_that_moved_without_cause(record: Record) -> None:
    _session(record, 101, 101, 102)


@breaks("home")
def a_session_that_moved_as_another_instance_was_killed(record: Record) -> None:
    kill_instance(record, 103, AT + 5)
    _session(record, 101, 101, 102)


@breaks("home")
def a_session_that_moved_back(record: Record) -> None:
    add_fault(record, "sick", AT - 1, 6.0, pids=[101], instance="instance-1")
    fall_ill(record, 101, AT + 1, AT + 6)
    _session(record, 101, 102, 102, 102, 102, 102, 101)


@keeps("home")
def a_session_whose_home_was_killed(record: Record) -> None:
    kill_instance(record, 101, AT + 5)
    _session(record, 101, 101, 102)


@keeps("home")
def a_session_of_a_version_that_was_rolled_back(record: Record) -> None:
    for sample in record.samples:
        if sample.at >= AT + 6 and sample.whole:
            sample.rollout = {"stable": "v1", "canary": None}
        for row in sample.instances:
            row.version = "v2" if row.pid == 101 else "v1"
    _session(record, 101, 101, 102)


@keeps("home")
def a_session_whose_homes_circuit_was_open_for_one_turn(record: Record) -> None:
    add_fault(record, "freeze_instance", AT + 3, 1.0, pids=[101], instance="instance-1")
    show(record, 101, AT + 3, AT + 5, circuit="open")
    _session(record, 101, 102, 101)


@keeps("home")
def a_session_whose_first_turn_failed_at_its_home(record: Record) -> None:
    add_fault(record, "freeze_instance", AT + 2, 5.0, pids=[101], instance="instance-1")
    _session(record, 101, 102, 102, 101)
    _fails(record.requests[-4], "request_timeout")


@breaks("home")
def a_session_that_moved_to_where_no_turn_of_it_was(record: Record) -> None:
    kill_instance(record, 101, AT + 2.02)
    _session(record, 101, 102, 102, 103)
    _fails(record.requests[-4], "instance_failed")


@breaks("memory")
def a_session_that_was_forgotten(record: Record) -> None:
    _session(record, 101, 101, 101)
    record.requests[-1].count = record.executions[-1].turn = 1


@breaks("memory")
def a_count_that_the_agent_never_had(record: Record) -> None:
    _session(record, 101, 101, 101)
    record.requests[-1].count = 5


@keeps("memory")
def a_session_that_begins_anew_where_it_moved_to(record: Record) -> None:
    kill_instance(record, 101, AT + 5)
    _session(record, 101, 101, 102, 102)
