"""What /metrics counts."""

from __future__ import annotations

from tests.campaign.checker_cases.registry import AT, breaks, keeps
from tests.campaign.made_up import CONTROLLER, FAULTS_OVER, add_fault, add_request, die
from tests.campaign.record import Record


@breaks("counts")
def an_answer_that_was_not_counted(record: Record) -> None:
    record.facts.counted_after["200"] -= 1


@breaks("counts")
def an_answer_that_was_counted_as_an_error(record: Record) -> None:
    record.facts.counted_after["200"] -= 1
    record.facts.counted_after["502"] = 1


@breaks("counts")
def an_answer_that_was_counted_twice(record: Record) -> None:
    record.facts.counted_after["200"] += 1


@keeps("counts")
def a_broken_connection_that_was_counted(record: Record) -> None:
    record.facts.counted_kill = {"pid": 13, "at": FAULTS_OVER + 11.0}
    die(record, 13, FAULTS_OVER + 11.1, "gateway")
    began = FAULTS_OVER + 10.8
    add_request(record, "plain", began, counted=True, outcome="broken", status=0, seconds=0.25)
    record.facts.counted_after["200"] += 1


@keeps("counts")
def a_websocket_whose_gateway_was_killed_after_its_last_message(record: Record) -> None:
    record.facts.counted_kill = {"pid": 13, "at": FAULTS_OVER + 11.0}
    die(record, 13, FAULTS_OVER + 11.1, "gateway")
    add_request(record, "ws", FAULTS_OVER + 8.9, counted=True, seconds=2.5, status=101)
    record.facts.counted_after["101"] -= 1


@breaks("counts")
def a_websocket_that_ended_before_its_gateway_was_killed(record: Record) -> None:
    a_websocket_whose_gateway_was_killed_after_its_last_message(record)
    record.facts.counted_kill["at"] += 2.0
    record.deaths[-1].at += 2.0


def _two_lives(record: Record, lost: int) -> None:
    before = record.facts.counted_before["200"]
    half = before // 2
    record.facts.counted_before["200"] -= half
    record.facts.counted_after["200"] -= half
    die(record, CONTROLLER, AT, "controller")
    add_fault(record, "kill_controller", AT - 0.1, pids=[CONTROLLER], counted={"200": half - lost})


@breaks("lives")
def a_life_whose_counts_were_doubled(record: Record) -> None:
    _two_lives(record, -200)


@keeps("lives")
def a_life_that_was_read_a_moment_before_its_end(record: Record) -> None:
    _two_lives(record, 30)
