"""Processes that end, instances that fall ill, and what is shown of them."""

from __future__ import annotations

from tests.campaign.checker_cases.registry import AT, breaks, keeps
from tests.campaign.made_up import CONTROLLER, add_fault, add_instance, add_request, die, fall_ill, kill_instance, show, silence
from tests.campaign.record import Record


@breaks("alive")
def an_instance_that_ended_by_itself(record: Record) -> None:
    die(record, 101, AT)


@breaks("alive")
def a_gateway_that_ended_by_itself(record: Record) -> None:
    die(record, 12, AT, "gateway")


def _worker(record: Record, pid: int, of: int) -> None:
    for sample in record.samples:
        if sample.whole and sample.at < AT + 20:
            sample.gateways.append(pid)
            sample.workers.append((pid, of))


@breaks("alive")
def a_worker_that_ended_by_itself(record: Record) -> None:
    _worker(record, 13, of=12)
    die(record, 13, AT + 20, "gateway")


@keeps("alive")
def a_worker_whose_gateway_was_killed(record: Record) -> None:
    _worker(record, 13, of=12)
    add_fault(record, "kill_gateway", AT - 10, 0.1, pids=[12])
    die(record, 12, AT - 10, "gateway")
    die(record, 13, AT + 20, "gateway")


@keeps("alive")
def an_instance_that_drained(record: Record) -> None:
    show(record, 101, AT - 3, AT + 1, state="draining")
    die(record, 101, AT)


@keeps("alive")
def a_version_that_never_started(record: Record) -> None:
    add_fault(record, "rollout", AT - 20, 25.0, what="deploy unwell", code="code2")
    for sample in record.samples:
        if AT - 18 <= sample.at <= AT:
            add_instance(Record(samples=[sample]), 107, 0.0, version="v2", state="starting")
    die(record, 107, AT)


@keeps("alive")
def a_version_that_was_given_up_as_its_last_instances_did_not_start(record: Record) -> None:
    add_fault(record, "rollout", AT - 20, 25.0, what="deploy canary", code="code2", exit_status=1)
    for sample in record.samples:
        if AT - 10 <= sample.at <= AT:
            add_instance(Record(samples=[sample]), 107, 0.0, version="v2")
    die(record, 107, AT)


@breaks("alive")
def an_instance_that_ended_as_another_version_was_given_up(record: Record) -> None:
    add_fault(record, "rollout", AT - 20, 25.0, what="deploy canary", code="code2", exit_status=1)
    die(record, 101, AT)


@breaks("healthy")
def a_circuit_that_opened_without_cause(record: Record) -> None:
    show(record, 101, AT, AT + 1, circuit="open")


@breaks("healthy")
def an_instance_that_stayed_unhealthy(record: Record) -> None:
    add_fault(record, "sick", AT - 6, 6.0, pids=[101], instance="instance-1")
    fall_ill(record, 101, AT - 4, AT + 40)


@breaks("healthy")
def an_instance_that_fell_ill_as_the_controller_froze(record: Record) -> None:
    add_fault(record, "freeze_controller", AT, 4.0, pids=[CONTROLLER])
    fall_ill(record, 101, AT + 4, AT + 6)


@keeps("healthy")
def an_instance_that_was_frozen(record: Record) -> None:
    add_fault(record, "freeze_instance", AT - 6, 6.0, pids=[101], instance="instance-1")
    show(record, 101, AT - 4, AT + 4, circuit="open")


@breaks("noticed")
def an_illness_that_was_not_shown(record: Record) -> None:
    add_fault(record, "sick", AT, 6.0, pids=[101], instance="instance-1")


@keeps("noticed")
def an_illness_that_was_shown(record: Record) -> None:
    add_fault(record, "sick", AT, 6.0, pids=[101], instance="instance-1")
    fall_ill(record, 101, AT + 2, AT + 8)


def _ill(record: Record, late: float) -> None:
    add_fault(record, "sick", AT, 8.0, pids=[101], instance="instance-1")
    fall_ill(record, 101, AT + 2, AT + 9)
    add_request(record, "plain", AT + 2 + late)


@breaks("in-rotation")
def a_request_for_an_unhealthy_instance(record: Record) -> None:
    _ill(record, 4.0)


@keeps("in-rotation")
def a_request_before_the_gateways_knew(record: Record) -> None:
    _ill(record, 1.0)


@breaks("admin")
def an_admin_port_that_was_silent(record: Record) -> None:
    silence(record, AT, AT + 6)


@keeps("admin")
def an_admin_port_whose_controller_was_frozen(record: Record) -> None:
    add_fault(record, "freeze_controller", AT - 0.5, 6.0, pids=[CONTROLLER])
    silence(record, AT, AT + 6)


@breaks("status")
def a_dead_instance_shown_as_healthy(record: Record) -> None:
    die(record, 101, AT)
    add_fault(record, "kill_instance", AT - 0.1, pids=[101], instance="instance-1")
    for sample in record.samples:
        if AT < sample.at < AT + 25:
            add_instance(Record(samples=[sample]), 101, 0.0)


@breaks("status")
def a_dead_gateway_shown_among_the_others(record: Record) -> None:
    a_dead_gateway_that_is_forgotten(record)
    for sample in record.samples:
        sample.gateways = [11, 12, 13] if sample.whole else []


@keeps("status")
def a_dead_gateway_that_is_forgotten(record: Record) -> None:
    die(record, 12, AT, "gateway")
    add_fault(record, "kill_gateway", AT - 0.1, pids=[12])


@keeps("status")
def a_dead_instance_shown_for_a_moment(record: Record) -> None:
    kill_instance(record, 101, AT)


@breaks("in-flight")
def requests_in_flight_that_are_not_shown(record: Record) -> None:
    for number in range(30):
        add_request(record, "stream", AT + 2 * number, seconds=2.0, first_byte=AT + 2 * number + 0.01)


@keeps("in-flight")
def requests_in_flight_that_are_shown(record: Record) -> None:
    requests_in_flight_that_are_not_shown(record)
    show(record, 101, AT + 1, AT + 70, active_connections=1)
