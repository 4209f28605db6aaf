"""What clients got, and what lets it be an error."""

from __future__ import annotations

from tests.campaign.checker_cases.registry import AT, breaks, keeps
from tests.campaign.made_up import PIDS, add_execution, add_failure, add_fault, add_instance, add_request, die, kill_instance
from tests.campaign.record import Fault, Record


@keeps("in-time")
def just_in_time(record: Record) -> None:
    add_request(record, "plain", AT, seconds=6.5)


@breaks("in-time")
def a_slow_answer(record: Record) -> None:
    add_request(record, "plain", AT, seconds=7.5)


@breaks("in-time")
def a_hang(record: Record) -> None:
    add_request(record, "plain", AT, seconds=40.0, outcome="hang", status=0)


@breaks("in-time")
def a_silence_in_a_stream(record: Record) -> None:
    add_request(record, "stream", AT, seconds=16.0, first_byte=AT + 0.1, longest_gap=14.0)


@keeps("in-time")
def late_as_its_gateway_was_frozen(record: Record) -> None:
    port = add_request(record, "plain", AT, seconds=9.0).client_port
    add_fault(record, "freeze_gateway", AT - 1, 5.0, pids=[11], client_ports=[port])


@breaks("in-time")
def late_as_another_gateway_was_frozen(record: Record) -> None:
    add_request(record, "plain", AT, seconds=9.0)
    add_fault(record, "freeze_gateway", AT + 2, 5.0, pids=[11], client_ports=[1])


@breaks("right-answer")
def the_answer_of_another_request(record: Record) -> None:
    add_request(record, "plain", AT, outcome="wrong", message="r17|101|code1|0")


@keeps("right-answer")
def the_error_of_garbage(record: Record) -> None:
    add_failure(record, "garbage", AT, "bad_request", status=400)


def _broken(record: Record, fault_at: float, port: int | None = None) -> Fault:
    request = add_failure(record, "plain", AT, "", outcome="broken", status=0, seconds=0.5, ran=101)
    ports = [request.client_port if port is None else port]
    die(record, 11, fault_at + 0.1, "gateway")
    return add_fault(record, "kill_gateway", fault_at, pids=[11], client_ports=ports)


@breaks("named")
def a_connection_that_broke_before_its_gateway_was_killed(record: Record) -> None:
    _broken(record, AT + 1.5)


@breaks("named")
def a_connection_that_broke_as_another_gateway_was_killed(record: Record) -> None:
    _broken(record, AT + 0.4, port=1).detail["ports_read"] = AT + 1.2


@breaks("named")
def an_error_without_a_name(record: Record) -> None:
    add_failure(record, "plain", AT, "", outcome="unnamed", status=500, message="Internal Server Error")


@keeps("named")
def a_connection_that_broke_with_its_gateway(record: Record) -> None:
    _broken(record, AT + 0.4)


@keeps("named")
def a_client_that_left(record: Record) -> None:
    add_failure(record, "leaver", AT, "", outcome="left", status=0)


@breaks("may-fail")
def a_failure_on_an_instance_that_nothing_touched(record: Record) -> None:
    add_failure(record, "plain", AT, "instance_failed", ran=101)


@breaks("may-fail")
def a_failure_as_another_instance_was_killed(record: Record) -> None:
    kill_instance(record, 102, AT + 0.4)
    add_failure(record, "plain", AT, "instance_failed", ran=101)


@breaks("may-fail")
def a_repeatable_request_that_was_not_repeated(record: Record) -> None:
    kill_instance(record, 101, AT + 0.4)
    add_failure(record, "keyed", AT, "instance_failed", ran=101)


@breaks("may-fail")
def a_refusal_while_instances_were_well(record: Record) -> None:
    add_failure(record, "plain", AT, "circuit_open", status=503)


@breaks("may-fail")
def an_error_that_no_fault_explains(record: Record) -> None:
    add_failure(record, "plain", AT, "agent_error", status=500, ran=101)


@breaks("may-fail")
def a_timeout_as_another_instance_was_frozen(record: Record) -> None:
    add_fault(record, "freeze_instance", AT, 8.0, pids=[102], instance="instance-2")
    add_failure(record, "plain", AT, "request_timeout", seconds=6.1, ran=101, status=504)


@keeps("may-fail")
def a_failure_on_an_instance_that_was_killed(record: Record) -> None:
    kill_instance(record, 101, AT + 0.4)
    add_failure(record, "plain", AT, "instance_failed", ran=101)


@keeps("may-fail")
def a_repeatable_request_when_nothing_else_was_well(record: Record) -> None:
    for pid in PIDS[1:]:
        add_fault(record, "freeze_instance", AT - 1, 4.0, pids=[pid], instance=f"instance-{pid % 100}")
    kill_instance(record, 101, AT + 0.4)
    add_failure(record, "keyed", AT, "instance_failed", ran=101)


@keeps("may-fail")
def the_error_of_a_version_that_fails(record: Record) -> None:
    add_fault(record, "rollout", AT - 5, what="deploy fails", code="code2")
    request = add_failure(record, "plain", AT, "agent_error", status=500)
    add_execution(record, request, 101, code="code2")


@keeps("may-fail")
def a_failure_in_a_version_that_dies(record: Record) -> None:
    add_fault(record, "rollout", AT - 5, what="deploy dies", code="code2")
    add_instance(record, 107, AT - 3, version="v2")
    request = add_failure(record, "plain", AT, "instance_failed", message="instance-7 closed the connection")
    add_execution(record, request, 107, code="code2")
    die(record, 107, AT + 0.4)
    for sample in record.samples:
        sample.instances = [row for row in sample.instances if row.pid != 207]


@keeps("may-fail")
def a_timeout_behind_a_cut_network(record: Record) -> None:
    add_fault(record, "cut_region", AT - 1, 8.0, region="us-east-1")
    add_failure(record, "plain", AT, "request_timeout", seconds=6.1, ran=101, status=504)


@keeps("may-fail")
def a_failure_whose_death_was_noted_late(record: Record) -> None:
    add_fault(record, "rollout", AT - 5, what="deploy dies", code="code2")
    add_instance(record, 107, AT - 3, version="v2")
    record.samples = [one for one in record.samples if not AT + 0.3 < one.at < AT + 2.8]
    request = add_failure(record, "plain", AT, "instance_failed", message="instance-7 closed the connection")
    add_execution(record, request, 107, code="code2")
    die(record, 107, AT + 2.7)
    for sample in record.samples:
        sample.instances = [row for row in sample.instances if row.pid != 207]


@keeps("may-fail")
def a_refusal_when_the_last_instance_had_died_a_moment_ago(record: Record) -> None:
    for pid in PIDS[1:]:
        add_fault(record, "freeze_instance", AT - 1, 4.0, pids=[pid], instance=f"instance-{pid % 100}")
    kill_instance(record, 101, AT + 0.1)
    add_failure(record, "plain", AT + 0.2, "no_healthy_instance", status=503, seconds=0.1)


@breaks("not-early")
def a_timeout_before_its_time(record: Record) -> None:
    add_fault(record, "freeze_instance", AT - 1, 8.0, pids=[101], instance="instance-1")
    add_failure(record, "plain", AT, "request_timeout", seconds=2.0, ran=101, status=504)


@keeps("not-early")
def a_timeout_on_a_frozen_instance(record: Record) -> None:
    add_fault(record, "freeze_instance", AT - 1, 8.0, pids=[101], instance="instance-1")
    add_failure(record, "plain", AT, "request_timeout", seconds=6.1, ran=101, status=504)


@keeps("named")
def broken_within_the_answer_as_its_instance_was_killed(record: Record) -> None:
    kill_instance(record, 101, AT + 0.4)
    add_failure(record, "plain", AT, "", outcome="broken", status=200, seconds=0.5, first_byte=AT + 0.3, ran=101)


@breaks("named")
def broken_within_the_answer_of_an_instance_that_lives(record: Record) -> None:
    kill_instance(record, 101, AT + 0.4)
    add_failure(record, "plain", AT, "", outcome="broken", status=200, seconds=0.5, first_byte=AT + 0.3, ran=102)


@breaks("named")
def broken_before_the_answer_as_its_instance_was_killed(record: Record) -> None:
    kill_instance(record, 101, AT + 0.4)
    add_failure(record, "plain", AT, "", outcome="broken", status=0, seconds=0.5, first_byte=0.0, ran=101)


@keeps("may-fail")
def timed_out_as_a_killed_process_took_long_to_end(record: Record) -> None:
    add_fault(record, "kill_node", AT, pids=[101], region="us-east-1")
    die(record, 101, AT + 8)
    add_failure(record, "plain", AT + 1, "request_timeout", seconds=6.2, status=504)


@breaks("may-fail")
def timed_out_after_a_killed_process_had_ended(record: Record) -> None:
    add_fault(record, "kill_node", AT - 10, pids=[101], region="us-east-1")
    die(record, 101, AT - 2)
    add_failure(record, "plain", AT + 1, "request_timeout", seconds=6.2, status=504)
