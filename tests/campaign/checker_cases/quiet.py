"""What is so after quiet, and after `down`."""

from __future__ import annotations

from tests.campaign.checker_cases.registry import AT, breaks, keeps
from tests.campaign.made_up import BEGAN, add_failure, add_fault, kill_instance
from tests.campaign.record import Record


@breaks("has-end")
def a_request_without_an_end(record: Record) -> None:
    record.facts.sent["requests"] += 1


@breaks("has-end")
def a_request_with_two_ends(record: Record) -> None:
    record.requests.append(record.requests[0])
    record.facts.sent["requests"] += 1
    record.facts.counted_before["200"] += 1
    record.facts.counted_after["200"] += 1


@keeps("has-end")
def a_request_whose_end_is_its_client(record: Record) -> None:
    add_failure(record, "staller", AT, "", outcome="left", status=0)


@breaks("settled")
def an_instance_that_did_not_come_back(record: Record) -> None:
    record.facts.settled, record.facts.unsettled = False, ["instance-3 is unhealthy"]


@keeps("settled")
def a_cluster_that_took_its_time(record: Record) -> None:
    record.facts.settled_after = 40.0


@breaks("zero")
def a_count_that_was_not_released(record: Record) -> None:
    record.samples[-1].instances[2].active_connections = 1


@keeps("zero")
def a_count_that_was_released_in_time(record: Record) -> None:
    record.samples[-2].instances[2].active_connections = 1


@breaks("down")
def a_down_that_failed(record: Record) -> None:
    record.facts.down_status, record.facts.down_output = 1, "the gateways did not stop"


@keeps("down")
def a_down_that_took_its_time(record: Record) -> None:
    record.facts.down_seconds = 40.0


@breaks("orphans")
def a_process_that_was_left(record: Record) -> None:
    record.facts.orphans = ["4711: ray::Gateway"]


@keeps("orphans")
def a_process_that_ended_before_down(record: Record) -> None:
    kill_instance(record, 101, AT)


@breaks("files")
def a_file_that_was_left(record: Record) -> None:
    record.facts.files_left = ["counts/11"]


@keeps("files")
def a_file_that_is_kept(record: Record) -> None:
    record.facts.down_output = "logs are kept in state/logs"


@breaks("logs")
def a_traceback(record: Record) -> None:
    record.facts.tracebacks = {"gateway: KeyError: 'x'": 3}


@keeps("logs")
def the_traceback_of_a_version_that_fails(record: Record) -> None:
    add_fault(record, "rollout", AT, what="deploy fails", code="code2")
    record.facts.tracebacks = {"replica: ValueError: this version fails": 3}


def _grow(record: Record, pid: int, kib_per_look: int) -> None:
    for number, size in enumerate(one for one in record.sizes if one.pid == pid):
        size.rss_kib += number * kib_per_look


@breaks("flat")
def a_leak_of_memory(record: Record) -> None:
    _grow(record, 11, 3000)


@breaks("flat")
def a_leak_of_files(record: Record) -> None:
    for number, size in enumerate(one for one in record.sizes if one.pid == 101):
        size.files += 4 * number


@keeps("flat")
def a_process_that_warms_up(record: Record) -> None:
    for size in record.sizes:
        if size.pid == 11:
            size.rss_kib += min(60_000, int((size.at - BEGAN) * 1000))
