"""`swiftclaw test failover`: which failures count as lost, the expected shares, and the command against a fake cluster that a
thread serves on real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.fleet import fault_injection
from swiftclaw import cli
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.failover import command, evaluation, report_tables, shares
from swiftclaw.cli.failover import trial as trial_module
from swiftclaw.cli.failover.evaluation import could_be_saved, evaluate
from swiftclaw.cli.failover.probes import Probe
from swiftclaw.cli.failover.report import FailoverReport, InstanceShare, RequestCounts
from swiftclaw.cli.failover.trial import TrialResult
from swiftclaw.cli.ray_cluster import controller, driver
from swiftclaw.cli.ray_cluster.cluster_record import ClusterRecord, save

# --- evaluation ----------------------------------------------------------------------------------------------------


def trial(**changes: Any) -> TrialResult:
    fields: dict[str, Any] = {
        "agent": "a", "instance": "instance-1", "mode": "kill", "duration_s": 5.0, "rate": 10.0, "others": 2,
        "confirmed_s": 0.1, "left_s": 0.0,
        "back_from_s": 3.0, "ready_s": 3.2, "serves": True,
    }  # fmt: skip
    return TrialResult(**{**fields, **changes})


def answered(at_s: float, number: int, **more: Any) -> Probe:
    return Probe(at_s, at_s + 0.01, instance=f"instance-{number}", **more)


def failed(at_s: float, error: str, status: int = 502, message: str = "", **more: Any) -> Probe:
    return Probe(at_s, at_s + 0.01, status, error=error, message=message, **more)


def traffic() -> list[Probe]:
    """Ten requests per second, in turns over three instances; instance-1 answers none of them from 0.1 to 3.5 s."""
    turns = count()
    times = [n / 10 for n in range(-20, 60)]
    return [answered(at, 1 + next(turns) % 3 if at <= 0.1 or at >= 3.5 else 2 + next(turns) % 2) for at in times]


EXPECTED = {"instance-2": 50.0, "instance-3": 50.0}


def evaluated(about: TrialResult, probes: list[Probe]) -> FailoverReport:
    return evaluate(about, probes, "round-robin", EXPECTED, True)


def test_a_run_without_failures_passes_and_reports_the_last_answer_and_the_return() -> None:
    report = evaluated(trial(), traffic())
    assert report.passed and report.verdict.startswith("passed: none of 80 requests lost; instance-1 back after 3.")
    assert report.requests == RequestCounts(sent=80, ok=80, refused=0, failed=0, lost=0, unavoidable=0, saved_by_retry=0)
    assert report.last_answer_s is not None and report.back_s is not None
    assert 0 <= report.last_answer_s <= 0.2 and 3.5 <= report.back_s < 4


def test_observed_shares_cover_the_time_while_the_instance_was_out() -> None:
    shares = evaluated(trial(), traffic()).shares
    assert [one.id for one in shares.instances] == ["instance-2", "instance-3"]
    assert [one.expected for one in shares.instances] == [50, 50]
    assert all(one.observed is not None and abs(one.observed - 50) < 3 for one in shares.instances)
    assert shares.requests == sum(one.requests for one in shares.instances) > 30


def test_an_instance_with_no_expected_share_is_shown_as_well() -> None:
    report = evaluated(trial(), [*traffic(), answered(1.0, 9)])
    last = report.shares.instances[-1]
    assert last == InstanceShare("instance-9", expected=None, observed=last.observed, requests=1)


@pytest.mark.parametrize(
    ("about", "probe", "lost"),
    [
        (
            {},
            failed(-0.005, "instance_failed", message="instance-1 broke off"),
            False,
        ),  # in flight when the instance was killed
        ({}, failed(0.2, "instance_failed", message="instance-1 broke off"), False),  # sent before the death could be noticed
        ({}, failed(0.6, "instance_failed", message="instance-1 broke off"), True),  # sent to a dead instance
        ({}, failed(0.0, "instance_failed", message="instance-2 broke off"), True),  # of another instance
        ({}, failed(0.0, "instance_failed", message="instance-12 broke off"), True),
        ({}, failed(0.0, "instance_failed", instance="instance-1"), False),
        ({"mode": "drain"}, failed(0.0, "instance_failed", message="instance-1 broke off"), True),
        ({"mode": "unhealthy"}, failed(0.0, "instance_failed", message="instance-1 broke off"), True),
        ({}, failed(-1.0, "no_answer", 0), False),  # before the start
        ({}, failed(1.0, "no_answer", 0), True),
        ({}, failed(1.0, "no_healthy_instance", 503), True),  # two others were healthy
        ({"others": 0}, failed(1.0, "no_healthy_instance", 503), False),
        ({"others": 0}, failed(5.0, "no_healthy_instance", 503), True),  # the instance was back by then
        ({"others": 0, "back_from_s": None}, failed(5.0, "no_healthy_instance", 503), False),
        ({}, failed(1.0, "rate_limited", 429), False),
        ({}, failed(1.0, "overloaded", 503), False),
        ({}, failed(1.0, "agent_error", 500, instance="instance-2"), False),  # the code of another instance
        ({"mode": "drain"}, failed(1.0, "agent_error", 500, instance="instance-1"), True),
        ({}, failed(1.0, "request_timeout", 504), True),
    ],
)
def test_only_failures_that_could_have_been_saved_are_lost(about: dict[str, Any], probe: Probe, lost: bool) -> None:
    assert could_be_saved(trial(**about), probe) is lost
    report = evaluated(trial(**about), [*traffic(), probe])
    assert report.requests.lost == int(lost)
    assert ("1 request lost that could have been saved" in report.verdict) is lost


def test_failures_in_flight_on_a_killed_instance_are_reported_and_pass() -> None:
    report = evaluated(trial(), [*traffic(), failed(-0.005, "instance_failed", message="instance-1 broke off")])
    assert report.passed and "only 1 request lost, in flight when the instance was killed" in report.verdict
    assert (report.requests.failed, report.requests.unavoidable) == (1, 1)


def test_lost_requests_fail_the_test_with_the_first_error() -> None:
    report = evaluated(
        trial(), [*traffic(), failed(2.0, "request_timeout", 504, "no answer within 1 s"), failed(1.0, "no_answer", 0)]
    )
    assert not report.passed
    assert report.verdict.startswith("FAILED: 2 requests lost that could have been saved (the first, no_answer after 1.01 s")
    assert [(e.type, e.count, e.lost) for e in report.errors] == [("no_answer", 1, 1), ("request_timeout", 1, 1)]


def test_an_answer_after_more_than_one_attempt_was_saved_by_a_retry() -> None:
    assert evaluated(trial(), [*traffic(), answered(0.0, 2, attempts=2)]).requests.saved_by_retry == 1


def test_an_instance_that_does_not_come_back_fails_the_test() -> None:
    quiet = [probe for probe in traffic() if probe.began_s < 3.4]
    report = evaluated(trial(back_from_s=None, ready_s=None), quiet)
    assert report.back_s is None
    assert report.verdict == "FAILED: instance-1 was not back and serving within 60 s"


def test_the_time_for_a_drained_instance_starts_at_the_end_of_its_process() -> None:
    early, later = traffic()[:22], traffic()[22:]
    late = [*early, *(replace(probe, began_s=probe.began_s + 100, ended_s=probe.ended_s + 100) for probe in later)]
    about = trial(mode="drain", back_from_s=103.0, ready_s=103.2)
    assert not evaluated(about, late).passed
    assert evaluated(replace(about, left_s=99.0), late).passed
    assert "had not finished its requests after 11 minutes" in evaluated(replace(about, left_s=None), late).verdict


def test_a_healthy_instance_without_requests_is_not_back_unless_it_never_received_any() -> None:
    quiet = [probe for probe in traffic() if probe.began_s < 3.4]
    assert not evaluated(trial(), quiet).passed
    report = evaluated(trial(serves=False), quiet)
    assert report.passed and report.back_s == 3.2


def test_an_instance_that_keeps_receiving_requests_fails_the_test() -> None:
    never_out = [answered(n / 10, 1) for n in range(-20, 120)]
    report = evaluated(trial(mode="unhealthy", duration_s=10.0, back_from_s=10.0), never_out)
    assert not report.passed and "still received requests 9.9 s after it was taken out of service" in report.verdict


@pytest.mark.parametrize(("seconds", "size"), [(10, 1), (26, 1), (50, 2), (100, 5), (3000, 300)])
def test_a_timeline_accounts_for_every_request_in_at_most_thirty_rows(seconds: int, size: int) -> None:
    probes = [answered(n / 2, 1 + n % 2) for n in range(-4, 2 * seconds)] + [failed(1.2, "no_answer", 0)]
    timeline = evaluated(trial(), probes).timeline
    assert timeline.bucket_s == size and len(timeline.buckets) <= 30
    assert sum(bucket.requests for bucket in timeline.buckets) == len(probes)
    assert sum(bucket.failed for bucket in timeline.buckets) == 1
    assert 0 in [bucket.from_s for bucket in timeline.buckets]


def test_there_is_a_report_without_any_request() -> None:
    assert evaluated(trial(), []).requests.sent == 0


# --- expected shares ------------------------------------------------------------------------------------


def row(number: int, region: str = "us", **more: Any) -> dict[str, Any]:
    return {
        "id": f"instance-{number}", "region": region, "version": "v1", "state": "healthy", "weight": 1, "node": "n",
        "pid": number, "uptime_s": 100.0, "health": {"status": "healthy", "reason": "", "checked_at": None}, **more,
    }  # fmt: skip


def agent(**more: Any) -> dict[str, Any]:
    return {
        "name": "my-agent", "strategy": "round-robin", "session_affinity": False,
        "versions": [{"version": "v1", "role": "stable", "weight": 100, "instances": 3}],
        "regions": {"us": {"instances": 3, "healthy": 3, "priority": 1}, "eu": {"instances": 2, "healthy": 2, "priority": 2}},
        **more,
    }  # fmt: skip


def test_equal_instances_share_evenly_and_weights_count() -> None:
    rows = [row(1), row(2), row(3)]
    assert shares.expected(shares.without(rows, "instance-1", "kill"), agent()) == {
        "instance-2": 50, "instance-3": 50,
    }  # fmt: skip
    rows = [row(1, weight=50), row(2, weight=30), row(3, weight=10)]
    assert shares.expected(shares.without(rows, "instance-1", "drain"), agent()) == {
        "instance-2": 75, "instance-3": 25,
    }  # fmt: skip


def test_a_level_with_an_unhealthy_instance_spills_over_and_one_without_the_instance_does_not() -> None:
    rows = [row(1), row(2), row(3), row(4, "eu"), row(5, "eu")]
    unhealthy = shares.expected(shares.without(rows, "instance-1", "unhealthy"), agent())
    assert unhealthy == {"instance-1": 0, "instance-2": 46.5, "instance-3": 46.5, "instance-4": 3.5, "instance-5": 3.5}
    gone = shares.expected(shares.without(rows, "instance-1", "kill"), agent())
    assert gone == {"instance-2": 50, "instance-3": 50, "instance-4": 0, "instance-5": 0}


def test_a_canary_has_its_share_and_without_a_healthy_instance_the_stable_version_has_all() -> None:
    versions = [{"version": "v1", "weight": 90}, {"version": "v2", "weight": 10}]
    rows = [row(1), row(2), row(3, version="v2")]
    assert shares.expected(rows, agent(versions=versions)) == {"instance-1": 45, "instance-2": 45, "instance-3": 10}
    left = shares.without(rows, "instance-3", "unhealthy")
    assert shares.expected(left, agent(versions=versions))["instance-1"] == 50


def test_a_share_is_exact_only_where_nothing_but_weights_decides() -> None:
    assert shares.exact(agent())
    assert not shares.exact(agent(strategy="least-connections"))
    assert not shares.exact(agent(session_affinity=True))


# --- output -------------------------------------------------------------------------------------------------------


def shown(report: FailoverReport) -> str:
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        console.print(report_tables.tables(report))
    return captured.get()


def test_the_report_fits_80_columns_and_is_complete() -> None:
    long = failed(1.0, "instance_failed", message="instance-2 broke off " * 9)
    for mode in fault_injection.MODES:
        report = evaluated(trial(mode=mode), [*traffic(), long])
        text = shown(report)
        assert report_tables.verdict(report).plain == report.verdict
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
        assert "\x1b" not in text and "…" not in text
        for expected in ("SECOND", "BY INSTANCE-1", "instance-3", "81 sent, 80 ok, 0 refused, 1 failed", "back"):
            assert expected in text


def test_the_report_in_the_docs_is_one_that_is_printed() -> None:
    page = (Path(__file__).parents[4] / "docs/failures.md").read_text("utf-8")
    heads = [
        line.rstrip() for line in shown(evaluated(trial(), traffic())).splitlines() if line.startswith(("SECOND", "WHILE AWAY"))
    ]
    assert len(heads) == 2 and all(f"\n{head}\n" in page for head in heads)


def test_a_bar_is_as_long_as_what_the_instance_answered() -> None:
    bars = [
        line.count("█") for line in shown(evaluated(trial(), traffic())).splitlines() if line[:6].strip().lstrip("-").isdigit()
    ]
    assert bars[3] == bars[4] == 0 < max(bars) == report_tables.BAR


# --- the command --------------------------------------------------------------------------------------------------------


class FakeCluster:
    """Gateway and admin port in one; the healthy instances answer in turns."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.turns = rows, count()
        self.asked: list[Any] = []
        self.status: Callable[[], int] = lambda: 200
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                about = agent(regions={"us": {"instances": 3, "healthy": 3, "priority": 1}})
                edge = {"host": "127.0.0.1", "port": cluster.port, "region": "us", "pid": 1}
                answers: dict[str, Any] = {
                    "/api/status": {"agents": [about], "gateways": [edge, {**edge, "pid": 2}]},
                    "/api/agents": [about],
                    "/api/agents/my-agent/instances": cluster.rows,
                }
                self.answer(200 if self.path in answers else 404, answers.get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                cluster.asked.append((self.path, sorted(body), self.headers.get("idempotency-key")))
                healthy = [one["id"] for one in cluster.rows if one["state"] == "healthy"]
                status = cluster.status()
                if not healthy or status != 200:
                    self.answer(503, {"error": {"type": "no_healthy_instance", "message": "nobody"}})
                    return
                self.answer(200, {"reply": "hi"}, healthy[next(cluster.turns) % len(healthy)])

            def answer(self, status: int, body: Any, instance: str = "") -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                if instance:
                    self.send_header("x-swiftclaw-instance", instance)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:  # a client that disconnects, as after Ctrl-C
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, name: str, mode: str, seconds: float) -> None:
        """What the Controller does; a killed or drained instance is back as another process after a second."""
        taken = next(one for one in self.rows if one["id"] == name)
        if mode == "unhealthy":
            taken["state"] = "unhealthy" if seconds else "healthy"
            if seconds:
                threading.Timer(seconds, lambda: taken.update(state="healthy")).start()
            return
        self.rows.remove(taken)
        threading.Timer(1.0, lambda: self.rows.append({**taken, "pid": taken["pid"] + 1000, "uptime_s": 0.0})).start()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A fake cluster, recorded in the current folder as if `up` had started it."""
    cluster = FakeCluster([row(1), row(2), row(3)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(trial_module, "WARM_UP_S", 0.5)
    monkeypatch.setattr(trial_module, "AFTERWARDS_S", 0.2)
    monkeypatch.setattr(driver, "connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(controller, "take_out", lambda _, name, mode, seconds: cluster.take(name, mode, seconds))
    (tmp_path / ".swiftclaw").mkdir()
    save(tmp_path / ".swiftclaw", ClusterRecord("127.0.0.1:1", True))
    yield cluster
    cluster.close()


def run(cluster: FakeCluster, *options: str) -> int:
    arguments = [
        "test",
        "failover",
        "my-agent",
        "--instance",
        "instance-1",
        "--duration",
        "1s",
        "--admin",
        cluster.url,
        *options,
    ]
    return cli.run(arguments)


KEYS = {
    "agent", "instance", "mode", "duration_s", "rate", "passed", "verdict", "requests", "errors", "last_answer_s", "back_s",
    "timeline", "shares",
}  # fmt: skip


@pytest.mark.parametrize("mode", fault_injection.MODES)
def test_each_mode_passes_if_nothing_is_lost(mode: str, fake: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fake, "--mode", mode, "--json") == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert set(report) == KEYS and report["mode"] == mode
    assert report["passed"] and report["requests"]["ok"] == report["requests"]["sent"] == len(fake.asked)
    assert report["back_s"] >= 1
    assert {one["id"] for one in report["shares"]["instances"] if one["requests"]} == {"instance-2", "instance-3"}
    assert f"taking instance-1 out of service: {mode}" in printed.err


def test_probes_are_plain_messages_like_those_of_users(fake: FakeCluster) -> None:
    assert run(fake, "--rate", "20") == 0
    assert {(path, *keys, key) for path, keys, key in fake.asked} == {("/agents/my-agent/messages", "message", None)}


def test_a_lost_request_is_exit_status_1_with_the_report(fake: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    fake.status = lambda: 503 if not any(one["id"] == "instance-1" for one in fake.rows) else 200
    assert run(fake) == 1
    printed = capsys.readouterr()
    assert "FAILED: " in printed.out and "no_healthy_instance" in printed.out
    assert printed.err.endswith("the failover test of instance-1 failed\n")


def test_an_instance_that_stays_out_is_exit_status_1(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "BACK_WITHIN_S", 1.0)
    monkeypatch.setattr(trial_module, "BACK_WITHIN_S", 1.0)
    monkeypatch.setattr(controller, "take_out", lambda *_: fake.rows.pop(0))
    assert run(fake, "--json") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["back_s"] is None
    assert printed.err.endswith("FAILED: instance-1 was not back and serving within 1 s\n")


REFUSALS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "the only instance": ([row(1)], "instance-1 is the only healthy instance of my-agent"),
    "the only healthy instance": ([row(1), row(2, state="draining")], "instance-1 is the only healthy instance of my-agent"),
    "unknown": ([row(2), row(3)], "my-agent has no instance 'instance-1' (it has: instance-2, instance-3)"),
    "unhealthy already": (
        [row(1, state="unhealthy", health={"status": "unhealthy", "reason": "database"}), row(2)],
        "instance-1 of my-agent is unhealthy (database); only a healthy instance can be taken out of service",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_instance_that_must_not_be_taken_out_is_refused_in_a_sentence(
    case: str, fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.rows, sentence = REFUSALS[case]
    assert run(fake) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(sentence) and printed.err.count("\n") == 1
    assert fake.asked == []


def test_forced_on_the_only_instance_refusals_are_counted_and_the_test_passes(
    fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.rows = [row(1)]
    assert run(fake, "--mode", "unhealthy", "--force", "--json") == 0
    counts = json.loads(capsys.readouterr().out)["requests"]
    assert counts["refused"] == counts["unavoidable"] > 0 == counts["lost"]


def test_an_agent_that_does_not_answer_is_not_tested(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(controller, "take_out", lambda *how: calls.append(how))
    fake.status = lambda: 503
    assert run(fake) == 1
    assert (
        "my-agent does not answer even before instance-1 is taken out of service (no_healthy_instance: nobody)"
        in capsys.readouterr().err
    )
    assert calls == []


def test_a_rejection_by_the_controller_is_the_error(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise CommandFailed("the Controller rejected the request: instance-1 is gone")

    monkeypatch.setattr(controller, "take_out", refuse)
    assert run(fake) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.endswith("the Controller rejected the request: instance-1 is gone\n")


def test_ctrl_c_releases_an_unhealthy_instance(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[float] = []

    def take(_: str, name: str, mode: str, seconds: float) -> None:
        calls.append(seconds)
        fake.take(name, mode, seconds and 60)
        if seconds:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(controller, "take_out", take)
    began = time.monotonic()
    options = ["--mode", "unhealthy", "--duration", "1h"]
    assert run(fake, *options) == 1
    assert calls == [3600, 0] and fake.rows[0]["state"] == "healthy"
    assert time.monotonic() - began < 60
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_without_a_running_cluster_it_says_how_to_start_or_name_one(
    fake: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".swiftclaw" / "cluster.json").unlink()
    assert run(fake) == 1
    assert capsys.readouterr().err.startswith("no Ray cluster is running on this machine")


@pytest.mark.parametrize("options", [["--duration", "10x"], ["--duration", "0.5s"], ["--rate", "0"], ["--mode", "hang"]])
def test_invalid_options_are_a_usage_error(options: list[str], fake: FakeCluster) -> None:
    assert run(fake, *options) == 2


def test_the_modes_are_the_modes_of_the_controller() -> None:
    assert fault_injection.MODES == command.MODES
