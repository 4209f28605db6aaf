"""What the comparison of routers makes of given runs, and that its stub, client and checks of streams are right."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from comparison import wrk
from routing import installed, paced, report, streams, stub
from routing.client import BROKEN, Answer, Target
from routing.figures import Run, per_thousand, percentile, summarize
from routing.paced import Sample

MACHINE: dict[str, Any] = {
    "cpu": "a CPU", "cores": 2, "memory_gb": 4, "system": "Linux", "load_before": 0.1, "versions": {"nginx": "1.22.1"},
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "rounds": 3, "threads": 1, "seconds": 5, "warm_up_s": 2, "connections": [1, 16, 64], "rate": 200, "streams": {"20": 1000},
}  # fmt: skip


# figures


@pytest.mark.parametrize(("percent", "expected"), [(1, 1), (50, 5), (51, 6), (90, 9), (99, 10), (100, 10)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    assert percentile(range(1, 11), percent) == expected


def test_nothing_measured_has_no_percentile_and_no_cost() -> None:
    assert percentile([], 99) == 0
    assert per_thousand(1.0, 0) == 0


def test_cost_is_per_thousand() -> None:
    assert per_thousand(0.5, 10_000) == pytest.approx(0.05)


def test_a_figure_is_the_median_of_the_rounds_and_failures_are_added_up() -> None:
    given = [(10.0, 1, 5.0), (30.0, 0, 90.0), (11.0, 2, 7.0)]
    runs = [
        Run("nginx", "failover", number, {"p50_ms": p50, "failed": failed, "slowest_ms": slowest})
        for number, (p50, failed, slowest) in enumerate(given, 1)
    ]
    (row,) = summarize(runs)
    assert (row.rounds, row.figures) == (3, {"p50_ms": 11, "failed": 3, "slowest_ms": 90})
    assert (row.lowest["p50_ms"], row.highest["p50_ms"]) == (10, 30)


def test_rows_are_in_the_order_of_the_contest() -> None:
    runs = [Run(name, measure, number, {}) for number in (1, 2) for name in "ba" for measure in ("paced", "standing")]
    assert [(row.contender, row.measure) for row in summarize(runs)] == [(n, m) for n in "ba" for m in ("paced", "standing")]


# wrk


def test_the_figures_of_wrk_are_found_among_what_else_it_prints() -> None:
    line = '{"us":5001000,"requests":1234,"p50_us":210,"p99_us":1800,"refused":3,"broken":1}'
    found = wrk.parse(f"Running 5s test @ http://x\n  Thread Stats   Avg\n\nfigures {line}\n")
    assert found == wrk.Figures(5.001, 1234, 0.21, 1.8, 3, 1)


def test_wrk_that_reports_nothing_is_no_figure() -> None:
    assert wrk.parse("unable to connect to 127.0.0.1:1 Connection refused\n") is None


def test_the_script_of_wrk_posts_the_body_with_its_headers() -> None:
    script = wrk.script_of(paced.chat(), {"x-key": "k"})
    assert f"wrk.body = [[{paced.chat().decode()}]]" in script
    assert 'wrk.headers["x-key"] = "k"' in script and 'wrk.headers["content-type"] = "application/json"' in script
    assert "]]" not in paced.chat().decode()  # it would end the string of Lua


# paced requests and failover


def test_a_request_is_timed_from_when_it_was_due_and_failed_ones_have_no_latency() -> None:
    samples = [Sample("", n * 1_000_000, n * 1_000_000 + 500_000 * n, 200) for n in range(1, 101)]
    found = paced.latency([*samples, Sample("", 0, 10**9, BROKEN), Sample("", 0, 10**9, 503)])
    assert found == {"requests": 102, "errors": 2, "p50_ms": 25, "p99_ms": 49.5}


def test_failover_counts_failures_stalls_and_what_ran_twice() -> None:
    ms = 1_000_000
    samples = [
        Sample("a", 0, 10 * ms, 200),
        Sample("b", 5 * ms, 400 * ms, 502),
        Sample("c", 10 * ms, 90 * ms, 200),
        Sample("d", 90 * ms, 100 * ms, 200),
    ]
    found = paced.failover(samples, ["a", "b", "c", "c", "d", "other", "other"], 0.007)
    assert found == {"requests": 4, "under_way": 2, "failed": 1, "slowest_ms": 395, "gap_ms": 80, "ran_twice": 1}


# streams


def chunk(number: int, sent_ns: int = 0) -> bytes:
    before, after = stub.chunk_parts(number)
    return b"%b%d%b" % (before, sent_ns, after)


def answer(*pieces: tuple[int, bytes], status: int = 200) -> Answer:
    return Answer(0, status, list(pieces))


CHUNKS = [chunk(number) for number in range(stub.CHUNKS)]


def test_a_whole_stream_has_its_first_its_last_and_the_delay_of_each_chunk() -> None:
    ms = 1_000_000
    pieces = [((5 * n + 2) * ms, chunk(n, sent_ns=5 * n * ms)) for n in range(stub.CHUNKS)]
    found = streams.read(answer(*pieces, (99 * ms, stub.END)))
    assert (found.lost, found.disordered) == (0, False)
    assert (found.first_ms, found.last_ms) == (2, 97)
    assert found.delays_ms == (2,) * stub.CHUNKS


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_a_stream_may_be_cut_anywhere(size: int) -> None:
    text = b"".join(CHUNKS) + stub.END
    pieces = [(start, text[start : start + size]) for start in range(0, len(text), size)]
    found = streams.read(answer(*pieces))
    assert (len(found.delays_ms), found.lost, found.disordered) == (stub.CHUNKS, 0, False)


def test_other_spacing_and_other_events_are_no_loss() -> None:
    compact = [json.dumps(json.loads(one[6:]), separators=(",", ":")) for one in CHUNKS]
    text = ": hello\n\n" + "".join(f"data: {one}\n\n" for one in compact)
    assert streams.read(answer((1, text.encode()), (2, stub.END))).lost == 0


@pytest.mark.parametrize(
    ("text", "lost", "disordered"),
    [
        (b"".join(CHUNKS[:-2]) + stub.END, 2, False),
        (b"".join(CHUNKS), 1, False),
        (b"", stub.CHUNKS, False),
        (b"".join([*CHUNKS[:3], CHUNKS[4], CHUNKS[3], *CHUNKS[5:]]) + stub.END, 0, True),
        (b"".join([*CHUNKS[:3], CHUNKS[2], *CHUNKS[3:]]) + stub.END, 0, True),
    ],
    ids=["two missing", "no end", "nothing", "two exchanged", "one twice"],
)
def test_what_is_missing_or_out_of_order_is_seen(text: bytes, lost: int, disordered: bool) -> None:
    found = streams.read(answer((1, text)))
    assert (found.lost, found.disordered) == (lost, disordered)
    (figures,) = [streams.figures([found])]
    assert (figures["lost_chunks"], figures["disordered"], figures["first_p50_ms"]) == (lost, disordered, 0)


def test_a_stream_that_was_refused_or_broke_off_is_lost() -> None:
    for status in (BROKEN, 503):
        assert streams.read(answer((1, b"".join(CHUNKS) + stub.END), status=status)).lost == stub.CHUNKS


# the stub and the client


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stub") / "executions"


@pytest.fixture(scope="module")
def target(log: Path) -> Iterator[Target]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(stub.build(log), log_level="warning", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Target(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions")
    server.should_exit = True
    thread.join(10)
    listener.close()


def test_paced_requests_are_answered_and_each_execution_is_written_down(target: Target, log: Path) -> None:
    samples = paced.run([target], rate=50, seconds=0.2, ids="run-", work_ms=20)
    assert [sample.status for sample in samples] == [200] * 10
    assert min(sample.ms for sample in samples) >= 20
    ids = [line.partition(" ")[0] for line in log.read_text().splitlines()]
    assert ids == [f"run-{number}" for number in range(10)]


def test_an_event_happens_in_the_middle_of_the_requests(target: Target) -> None:
    happened: list[float] = []
    samples = paced.run([target], rate=50, seconds=0.2, events=[(0.1, lambda: happened.append(time.monotonic_ns()))])
    assert sum(sample.due_ns < happened[0] for sample in samples) in range(4, 8)


def test_nothing_that_listens_is_a_failed_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (sample,) = paced.run([Target(f"http://127.0.0.1:{port}/")], rate=1, seconds=1)
    assert sample.status == BROKEN


def test_streams_at_the_same_time_arrive_whole_in_order_and_are_timed(target: Target) -> None:
    found = streams.figures(streams.run([target], concurrent=5, streams=12))
    assert (found["streams"], found["lost_chunks"], found["disordered"]) == (12, 0, 0)
    assert 0 < found["first_p50_ms"] < found["last_p50_ms"]
    assert found["last_p50_ms"] >= 1000 * stub.GAP_S * (stub.CHUNKS - 1)
    assert found["delay_p99_ms"] > 0


def test_the_answer_has_about_the_size_that_the_page_says() -> None:
    assert 350 < len(stub.ANSWER) < 450


# the report


def document(**more: Any) -> dict[str, Any]:
    standing = {"start_mb": 13.0, "end_mb": 18.4, "beside_mb": 980.0, "idle_cores": 0.021}
    runs = [
        Run("haproxy", "requests-16", 1, {"per_second": 33_000.0, "p50_ms": 0.4, "p99_ms": 2.0, "errors": 0}),
        Run("swiftclaw", "requests-16", 1, {"per_second": 8_000.0, "p50_ms": 2, "p99_ms": 5, "errors": 2, "beside_cores": 0.3}),
        Run("swiftclaw", "standing", 1, standing),
        Run("haproxy", "streams-20", 1, streams.figures([streams.read(answer((1, b"".join(CHUNKS) + stub.END)))])),
        Run("swiftclaw", "failover", 1, paced.failover([Sample("a", 0, 2_000_000, 200)], ["a"], 0.001)),
    ]
    table = [vars(row) for row in summarize(runs)]
    made = {"made": "today", "machine": MACHINE, "settings": SETTINGS, "left_out": [], "table": table}
    return {**made, "runs": [vars(run) for run in runs], **more}


def test_the_page_has_a_row_for_what_was_measured_and_none_for_the_rest() -> None:
    page = report.as_markdown(document())
    assert "| HAProxy | - | - | - | 33,000 | 2.00 | - | - | - | - |" in page
    assert "| SwiftClaw, 1 gateway | - | 8,000 to 8,000 | - | 2 |" in page
    assert "## 20 streams at a time, 1,000 in each round" in page
    assert "| SwiftClaw, 1 gateway | 1 | 1 | 0 | 0 | 2 | 0 |" in page
    assert "nginx 1.22.1" in page and "980 MB and 0.30 of a core" in page
    assert "vllm-router (Rust)" not in page


def test_what_was_left_out_is_said() -> None:
    why = "vllm-router: `pip install` failed: no network"
    assert f"Left out: {why}" in report.as_markdown(document(left_out=[why]))


def test_every_run_is_kept_and_the_picture_is_drawn_where_it_can_be(tmp_path: Path) -> None:
    report.write(tmp_path, document())
    kept = json.loads((tmp_path / "routers.json").read_text())
    assert [run["contender"] for run in kept["runs"]].count("swiftclaw") == 3
    assert (tmp_path / "routers.md").read_text().startswith("# SwiftClaw and other routers")
    pytest.importorskip("matplotlib")
    assert "<svg" in (tmp_path / "routers.svg").read_text()


def test_a_router_that_cannot_be_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installed, "FOLDER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(installed.NotInstalled, match="nginx: it is not in PATH, and this system has no apt-get"):
        installed.nginx()
    assert installed.version("vllm-router") == "absent"
