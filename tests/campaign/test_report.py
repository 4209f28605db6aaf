"""The report says what was survived, and shows each violation once, with its faults and what the client saw."""

from __future__ import annotations

import json
from pathlib import Path

from tests.campaign.checker import judge
from tests.campaign.made_up import BEGAN, add_failure, add_fault, add_request, kill_instance, sound_record
from tests.campaign.record import Record
from tests.campaign.report import JSON, TEXT, figures, group, in_words, write_report

AT = BEGAN + 50


def test_a_sound_run_has_its_figures_and_no_violation() -> None:
    record = sound_record()
    values, text = figures(record, judge(record)), in_words(record, judge(record))
    assert (values["requests"], values["answered"], values["sessions"]) == (167, 167, 4)
    assert (values["double_executions"], values["sessions_moved_without_cause"]) == (0, 0)
    assert values["latency_ms"] == {"p50": 50.0, "p99": 50.0, "most": 100.0}
    assert values["memory_mib"]["gateway"] == [146.5, 146.5]
    assert text.splitlines()[-1] == "no violation"
    assert "requests   167, answered 167; 167 ok" in text


def test_faults_are_counted_by_kind_and_what_was_skipped_apart() -> None:
    record = sound_record()
    kill_instance(record, 101, AT + 0.4)
    add_fault(record, "kill_node", AT, skipped="no node runs but the head", struck=0.0)
    add_failure(record, "plain", AT, "instance_failed", ran=101)
    values = figures(record, judge(record))
    assert (values["faults"], values["faults_by_kind"], values["skipped"]) == (1, {"kill_instance": 1}, {"kill_node": 1})
    assert values["excused"] == {"instance_failed: its instance was killed (kill_instance)": 1}


def slow(record: Record, times: int) -> None:
    for number in range(times):
        add_request(record, "plain", AT + number, seconds=8.0 + number / 10)


def test_alike_violations_are_one_entry_with_their_number() -> None:
    record = sound_record()
    slow(record, 3)
    add_failure(record, "chat", AT, "instance_failed", ran=101)
    verdict = judge(record)
    assert [len(alike) for alike in group(verdict.violations)] == [3, 1]
    text = in_words(record, verdict)
    assert "4 VIOLATIONS of 2 rules" in text
    assert "[in-time] every request ends within its time (3 times)" in text


def test_a_violation_has_its_seed_the_faults_around_it_and_what_the_client_saw() -> None:
    record = sound_record()
    kill_instance(record, 102, AT + 0.4)
    add_failure(record, "chat", AT, "instance_failed", ran=101, message="instance-1 closed the connection")
    text = in_words(record, judge(record))
    assert "seed 1, at 50.0 s: r167 (chat) error instance_failed 502" in text
    assert "the client saw: error instance_failed 502 after 0.50 s: instance-1 closed the connection" in text
    assert "faults around it: kill_instance instance-2 50.4..50.5" in text


def test_the_report_is_in_the_runs_folder_in_words_and_as_json(tmp_path: Path) -> None:
    record = sound_record()
    slow(record, 2)
    text = write_report(tmp_path, record, judge(record))
    assert (tmp_path / TEXT).read_text() == text + "\n"
    values = json.loads((tmp_path / JSON).read_text())
    assert values["violations_by_rule"] == {"in-time": 2}
    assert [one["rule"] for one in values["violations"]] == ["in-time", "in-time"]


def test_a_run_without_an_answer_has_a_report(tmp_path: Path) -> None:
    assert "requests   0, answered 0" in write_report(tmp_path, Record(), judge(Record()))
