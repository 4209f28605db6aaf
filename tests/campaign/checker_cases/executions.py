"""What ran, how often and where."""

from __future__ import annotations

from tests.campaign.checker_cases.registry import AT, breaks, keeps
from tests.campaign.made_up import PIDS, add_execution, add_failure, add_fault, add_request, show
from tests.campaign.record import Record


@breaks("once")
def a_post_that_ran_twice(record: Record) -> None:
    add_execution(record, add_request(record, "app-post", AT), 102)


@breaks("once")
def a_post_of_a_client_that_left_and_ran_twice(record: Record) -> None:
    add_execution(record, add_failure(record, "leaver", AT, "", outcome="left", status=0, ran=101), 102)


@keeps("once")
def a_put_that_ran_twice(record: Record) -> None:
    add_execution(record, add_request(record, "app-put", AT, attempts=2), 102)


@breaks("repeats")
def a_put_that_ran_twice_on_one_process(record: Record) -> None:
    add_execution(record, add_request(record, "app-put", AT), 101)


@breaks("repeats")
def a_put_that_ran_four_times(record: Record) -> None:
    request = add_request(record, "app-put", AT)
    for pid in (102, 103, 104):
        add_execution(record, request, pid)


@keeps("repeats")
def a_put_that_ran_three_times(record: Record) -> None:
    request = add_request(record, "app-put", AT)
    for pid in (102, 103):
        add_execution(record, request, pid)


@breaks("who-ran")
def an_answer_of_a_process_that_did_not_run_it(record: Record) -> None:
    add_request(record, "keyed", AT).pid = 103


@keeps("who-ran")
def an_answer_of_the_second_process_that_ran_it(record: Record) -> None:
    request = add_request(record, "keyed", AT)
    add_execution(record, request, 103)
    request.pid = 103


def _none_is_well(record: Record) -> None:
    for pid in PIDS:
        add_fault(record, "freeze_instance", AT - 2, 8.0, pids=[pid], instance=f"instance-{pid % 100}")
        show(record, pid, AT - 1, AT + 5, circuit="open")


@breaks("refused-not-run")
def a_refusal_of_what_ran(record: Record) -> None:
    _none_is_well(record)
    add_failure(record, "plain", AT, "circuit_open", status=503, ran=101)


@keeps("refused-not-run")
def a_refusal_when_no_instance_was_well(record: Record) -> None:
    _none_is_well(record)
    add_failure(record, "plain", AT, "circuit_open", status=503)
