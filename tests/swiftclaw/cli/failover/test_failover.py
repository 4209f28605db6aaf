"""`swiftclaw test failover`: what is counted as lost, who should have had which share, and the command itself against a
cluster that is played by a thread on real sockets."""

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

# --- what is counted ----------------------------------------------------------------------------------------------------


def trial(**changes: Any) -> TrialResult:
    made: dict[str, Any] = {
        "agent": "a", "instance": "instance-1", "mode": "kill", "duration_s": 5.0, "rate": 10.0, "others": 2,
        "confirmed_s": 0.1, "left_s": 0.0,
        "back_from_s": 3.0, "ready_s": 3.2, "serves": True,
    }  # fmt: skip
    return TrialResult(**{**made, **changes})


def answered(at_s: float, number: int, **more: Any) -> Probe:
    return Probe(at_s, at_s + 0.01, instance=f"instance-{number}", **more)


def failed(at_s: float, error: str, status: int = 502, message: str = "", **more: Any) -> Probe:
    return Probe(at_s, at_s + 0.01, status, error=error, message=message, **more)


def traffic() -> list[Probe]:
    """Ten a second in turns over three instances, the first of which answers nothing from 0.1 to 3.5 s."""
    turns = count()
    times = [n / 10 for n in range(-20, 60)]
    return [answered(at, 1 + next(turns) % 3 if at <= 0.1 or at >= 3.5 else 2 + next(turns) % 2) for at in times]


EXPECTED = {"instance-2": 50.0, "instance-3": 50.0}


def made(about: TrialResult, probes: list[Probe]) -> FailoverReport:
    return evaluate(about, probes, "round-robin", EXPECTED, True)


def test_a_run_without_a_failure_passes_and_says_when_it_went_and_came_back() -> None:
    found = made(trial(), traffic())
    assert found.passed and found.verdict.startswith("passed: none of 80 requests lost; instance-1 back after 3.")
    assert found.requests == RequestCounts(sent=80, ok=80, refused=0, failed=0, lost=0, unavoidable=0, saved_by_retry=0)
    assert 0 <= found.last_answer_s <= 0.2 and 3.5 <= found.back_s < 4


def test_observed_shares_are_those_of_the_time_while_it_was_away() -> None:
    shares = made(trial(), traffic()).shares
    assert [one.id for one in shares.instances] == ["instance-2", "instance-3"]
    assert [one.expected for one in shares.instances] == [50, 50]
    assert all(abs(one.observed - 50) < 3 for one in shares.instances)
    assert shares.requests == sum(one.requests for one in shares.instances) > 30


def test_an_instance_that_should_have_got_nothing_is_shown_all_the_same() -> None:
    found = made(trial(), [*traffic(), answered(1.0, 9)])
    last = found.shares.instances[-1]
    assert last == InstanceShare("instance-9", expected=None, observed=last.observed, requests=1)


@pytest.mark.parametrize(
    ("about", "probe", "lost"),
    [
        (
            {},
            failed(-0.005, "instance_failed", message="instance-1 broke off"),
            False,
        ),  # in flight when the instance was killed
        ({}, failed(0.2, "instance_failed", message="instance-1 broke off"), False),  # sent before anybody could know
        ({}, failed(0.6, "instance_failed", message="instance-1 broke off"), True),  # sent to a dead instance
        ({}, failed(0.0, "instance_failed", message="instance-2 broke off"), True),  # another one's
        ({}, failed(0.0, "instance_failed", message="instance-12 broke off"), True),
        ({}, failed(0.0, "instance_failed", instance="instance-1"), False),
        ({"mode": "drain"}, failed(0.0, "instance_failed", message="instance-1 broke off"), True),
        ({"mode": "unhealthy"}, failed(0.0, "instance_failed", message="instance-1 broke off"), True),
        ({}, failed(-1.0, "no_answer", 0), False),  # before the take-away
        ({}, failed(1.0, "no_answer", 0), True),
        ({}, failed(1.0, "no_healthy_instance", 503), True),  # two others were healthy
        ({"others": 0}, failed(1.0, "no_healthy_instance", 503), False),
        ({"others": 0}, failed(5.0, "no_healthy_instance", 503), True),  # it was back by then
        ({"others": 0, "back_from_s": None}, failed(5.0, "no_healthy_instance", 503), False),
        ({}, failed(1.0, "rate_limited", 429), False),
        ({}, failed(1.0, "overloaded", 503), False),
        ({}, failed(1.0, "agent_error", 500, instance="instance-2"), False),  # another one's own code
        ({"mode": "drain"}, failed(1.0, "agent_error", 500, instance="instance-1"), True),
        ({}, failed(1.0, "request_timeout", 504), True),
    ],
)
def test_lost_is_what_could_have_been_saved(about: dict[str, Any], probe: Probe, lost: bool) -> None:
    assert could_be_saved(trial(**about), probe) is lost
    found = made(trial(**about), [*traffic(), probe])
    assert found.requests.lost == int(lost)
    assert ("1 request lost that could have been saved" in found.verdict) is lost


def test_what_was_in_flight_on_a_killed_instance_is_told_and_passes() -> None:
    found = made(trial(), [*traffic(), failed(-0.005, "instance_failed", message="instance-1 broke off")])
    assert found.passed and "only 1 request lost, in flight when the instance was killed" in found.verdict
    assert (found.requests.failed, found.requests.unavoidable) == (1, 1)


def test_a_lost_request_fails_the_test_with_the_first_error() -> None:
    found = made(
        trial(), [*traffic(), failed(2.0, "request_timeout", 504, "no answer within 1 s"), failed(1.0, "no_answer", 0)]
    )
    assert not found.passed
    assert found.verdict.startswith("FAILED: 2 requests lost that could have been saved (the first, no_answer after 1.01 s")
    assert [(e.type, e.count, e.lost) for e in found.errors] == [("no_answer", 1, 1), ("request_timeout", 1, 1)]


def test_an_answer_after_more_than_one_attempt_was_saved_by_a_retry() -> None:
    assert made(trial(), [*traffic(), answered(0.0, 2, attempts=2)]).requests.saved_by_retry == 1


def test_an_instance_that_does_not_come_back_fails_the_test() -> None:
    quiet = [probe for probe in traffic() if probe.began_s < 3.4]
    found = made(trial(back_from_s=None, ready_s=None), quiet)
    assert found.back_s is None
    assert found.verdict == "FAILED: instance-1 was not back and serving within 60 s"


def test_a_drained_instance_has_its_time_from_the_end_of_its_process_on() -> None:
    early, later = traffic()[:22], traffic()[22:]
    late = [*early, *(replace(probe, began_s=probe.began_s + 100, ended_s=probe.ended_s + 100) for probe in later)]
    about = trial(mode="drain", back_from_s=103.0, ready_s=103.2)
    assert not made(about, late).passed
    assert made(replace(about, left_s=99.0), late).passed
    assert "had not finished its requests after 11 minutes" in made(replace(about, left_s=None), late).verdict


def test_an_instance_that_is_healthy_but_gets_nothing_is_not_back_unless_it_never_got_anything() -> None:
    quiet = [probe for probe in traffic() if probe.began_s < 3.4]
    assert not made(trial(), quiet).passed
    found = made(trial(serves=False), quiet)
    assert found.passed and found.back_s == 3.2


def test_an_instance_that_goes_on_getting_requests_fails_the_test() -> None:
    on_and_on = [answered(n / 10, 1) for n in range(-20, 120)]
    found = made(trial(mode="unhealthy", duration_s=10.0, back_from_s=10.0), on_and_on)
    assert not found.passed and "still received requests 9.9 s after it was taken out of service" in found.verdict


@pytest.mark.parametrize(("seconds", "size"), [(10, 1), (26, 1), (50, 2), (100, 5), (3000, 300)])
def test_a_timeline_accounts_for_every_request_in_at_most_thirty_rows(seconds: int, size: int) -> None:
    probes = [answered(n / 2, 1 + n % 2) for n in range(-4, 2 * seconds)] + [failed(1.2, "no_answer", 0)]
    timeline = made(trial(), probes).timeline
    assert timeline.bucket_s == size and len(timeline.buckets) <= 30
    assert sum(bucket.requests for bucket in timeline.buckets) == len(probes)
    assert sum(bucket.failed for bucket in timeline.buckets) == 1
    assert 0 in [bucket.from_s for bucket in timeline.buckets]


def test_no_request_at_all_is_a_report_too() -> None:
    assert made(trial(), []).requests.sent == 0


# --- who should have had which share ------------------------------------------------------------------------------------


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


def test_a_level_of_which_an_instance_is_ill_hands_over_a_part_and_one_of_which_it_is_gone_does_not() -> None:
    rows = [row(1), row(2), row(3), row(4, "eu"), row(5, "eu")]
    ill = shares.expected(shares.without(rows, "instance-1", "unhealthy"), agent())
    assert ill == {"instance-1": 0, "instance-2": 46.5, "instance-3": 46.5, "instance-4": 3.5, "instance-5": 3.5}
    gone = shares.expected(shares.without(rows, "instance-1", "kill"), agent())
    assert gone == {"instance-2": 50, "instance-3": 50, "instance-4": 0, "instance-5": 0}


def test_a_canary_has_its_percent_and_without_a_healthy_instance_stable_has_all() -> None:
    versions = [{"version": "v1", "weight": 90}, {"version": "v2", "weight": 10}]
    rows = [row(1), row(2), row(3, version="v2")]
    assert shares.expected(rows, agent(versions=versions)) == {"instance-1": 45, "instance-2": 45, "instance-3": 10}
    left = shares.without(rows, "instance-3", "unhealthy")
    assert shares.expected(left, agent(versions=versions))["instance-1"] == 50


def test_a_share_is_exact_only_where_nothing_but_weights_decides() -> None:
    assert shares.exact(agent())
    assert not shares.exact(agent(strategy="least-connections"))
    assert not shares.exact(agent(session_affinity=True))


# --- how it looks -------------------------------------------------------------------------------------------------------


def shown(found: FailoverReport) -> str:
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        console.print(report_tables.tables(found))
    return captured.get()


def test_the_report_fits_80_columns_and_says_all_of_it() -> None:
    long = failed(1.0, "instance_failed", message="instance-2 broke off " * 9)
    for mode in fault_injection.MODES:
        found = made(trial(mode=mode), [*traffic(), long])
        text = shown(found)
        assert report_tables.verdict(found).plain == found.verdict
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
        assert "\x1b" not in text and "…" not in text
        for expected in ("SECOND", "BY INSTANCE-1", "instance-3", "81 sent, 80 ok, 0 refused, 1 failed", "back"):
            assert expected in text


def test_the_report_in_the_docs_is_one_that_is_printed() -> None:
    page = (Path(__file__).parents[4] / "docs/failures.md").read_text("utf-8")
    heads = [
        line.rstrip() for line in shown(made(trial(), traffic())).splitlines() if line.startswith(("SECOND", "WHILE AWAY"))
    ]
    assert len(heads) == 2 and all(f"\n{head}\n" in page for head in heads)


def test_a_bar_is_as_long_as_what_the_instance_answered() -> None:
    bars = [line.count("█") for line in shown(made(trial(), traffic())).splitlines() if line[:6].strip().lstrip("-").isdigit()]
    assert bars[3] == bars[4] == 0 < max(bars) == report_tables.BAR


# --- the command --------------------------------------------------------------------------------------------------------


class FakeCluster:
    """Gateway and admin port in one: answers in turns from whoever is healthy."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.turns, self.asked = rows, count(), []
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
            def handle_error(self, *_: Any) -> None:  # a client that leaves, as at Ctrl-C
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, name: str, mode: str, seconds: float) -> None:
        """As the Controller does it; what is killed or drained is back as another process after half a second."""
        taken = next(one for one in self.rows if one["id"] == name)
        if mode == "unhealthy":
            taken["state"] = "unhealthy" if seconds else "healthy"
            if seconds:
                threading.Timer(seconds, lambda: taken.update(state="healthy")).start()
            return
        self.rows.remove(taken)
        threading.Timer(0.5, lambda: self.rows.append({**taken, "pid": taken["pid"] + 1000, "uptime_s": 0.0})).start()


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """In the folder of a cluster that `up` has started, with a Controller that is the fake's."""
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
    given = ["test", "failover", "my-agent", "--instance", "instance-1", "--duration", "1s", "--admin", cluster.url, *options]
    return cli.run(given)


KEYS = {
    "agent", "instance", "mode", "duration_s", "rate", "passed", "verdict", "requests", "errors", "last_answer_s", "back_s",
    "timeline", "shares",
}  # fmt: skip


@pytest.mark.parametrize("mode", fault_injection.MODES)
def test_each_mode_passes_where_nothing_is_lost(mode: str, played: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(played, "--mode", mode, "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert set(found) == KEYS and found["mode"] == mode
    assert found["passed"] and found["requests"]["ok"] == found["requests"]["sent"] == len(played.asked)
    assert found["back_s"] >= (1 if mode == "unhealthy" else 0.5)
    assert {one["id"] for one in found["shares"]["instances"] if one["requests"]} == {"instance-2", "instance-3"}
    assert f"taking instance-1 out of service: {mode}" in said.err


def test_probes_are_plain_messages_as_a_users(played: FakeCluster) -> None:
    assert run(played, "--rate", "20") == 0
    assert {(path, *keys, key) for path, keys, key in played.asked} == {("/agents/my-agent/messages", "message", None)}


def test_a_lost_request_is_exit_status_1_with_the_report(played: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    played.status = lambda: 503 if not any(one["id"] == "instance-1" for one in played.rows) else 200
    assert run(played) == 1
    said = capsys.readouterr()
    assert "FAILED: " in said.out and "no_healthy_instance" in said.out
    assert said.err.endswith("the failover test of instance-1 failed\n")


def test_one_that_stays_away_is_exit_status_1(
    played: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "BACK_WITHIN_S", 1.0)
    monkeypatch.setattr(trial_module, "BACK_WITHIN_S", 1.0)
    monkeypatch.setattr(controller, "take_out", lambda *_: played.rows.pop(0))
    assert run(played, "--json") == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["back_s"] is None
    assert said.err.endswith("FAILED: instance-1 was not back and serving within 1 s\n")


REFUSALS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "the only one": ([row(1)], "instance-1 is the only healthy instance of my-agent"),
    "the only healthy one": ([row(1), row(2, state="draining")], "instance-1 is the only healthy instance of my-agent"),
    "unknown": ([row(2), row(3)], "my-agent has no instance 'instance-1' (it has: instance-2, instance-3)"),
    "ill already": (
        [row(1, state="unhealthy", health={"status": "unhealthy", "reason": "database"}), row(2)],
        "instance-1 of my-agent is unhealthy (database); only a healthy instance can be taken out",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_tested_is_refused_in_a_sentence(
    case: str, played: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    played.rows, says = REFUSALS[case]
    assert run(played) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(says) and said.err.count("\n") == 1
    assert played.asked == []


def test_forced_on_the_only_one_the_refused_are_counted_and_not_held_against_it(
    played: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    played.rows = [row(1)]
    assert run(played, "--mode", "unhealthy", "--force", "--json") == 0
    counts = json.loads(capsys.readouterr().out)["requests"]
    assert counts["refused"] == counts["unavoidable"] > 0 == counts["lost"]


def test_an_agent_that_answers_nobody_even_before_is_left_alone(
    played: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(controller, "take_out", lambda *how: taken.append(how))
    played.status = lambda: 503
    assert run(played) == 1
    assert (
        "my-agent does not answer, even before instance-1 is taken out (no_healthy_instance: nobody)" in capsys.readouterr().err
    )
    assert taken == []


def test_what_the_controller_refuses_is_said(
    played: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise CommandFailed("the Controller rejected the request: instance-1 is gone")

    monkeypatch.setattr(controller, "take_out", refuse)
    assert run(played) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith("the Controller rejected the request: instance-1 is gone\n")


def test_ctrl_c_ends_being_unhealthy(
    played: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[float] = []

    def take(_: str, name: str, mode: str, seconds: float) -> None:
        calls.append(seconds)
        played.take(name, mode, seconds and 60)
        if seconds:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(controller, "take_out", take)
    began = time.monotonic()
    given = ["--mode", "unhealthy", "--duration", "1h"]
    assert run(played, *given) == 1
    assert calls == [3600, 0] and played.rows[0]["state"] == "healthy"
    assert time.monotonic() - began < 60
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_without_a_record_of_up_it_says_so(played: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".swiftclaw" / "cluster.json").unlink()
    assert run(played) == 1
    assert capsys.readouterr().err.startswith(f"SwiftClaw was not started from {tmp_path}")


@pytest.mark.parametrize("options", [["--duration", "10x"], ["--duration", "0.5s"], ["--rate", "0"], ["--mode", "hang"]])
def test_what_makes_no_sense_is_a_usage_error(options: list[str], played: FakeCluster) -> None:
    assert run(played, *options) == 2


def test_the_modes_are_those_of_the_controller() -> None:
    assert command.failover.params and fault_injection.MODES == command.MODES
