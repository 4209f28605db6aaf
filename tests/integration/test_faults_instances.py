"""Instances that run but do not do their work: they fail, hang, freeze or break off; one of six, or all of them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.conftest import Cluster, free_port, my_agent, until
from tests.integration.load import Load, Sent, note

pytestmark = pytest.mark.cluster

THRESHOLD, TIMEOUT_S, RESET_S, REQUEST_TIMEOUT_S = 5, 1.0, 3.0, 4.0
PROBES = 3  # more than can go to an instance, one after the other, while a test looks at it
HEARD_S = 0.5  # how much later than the Controller a gateway may know, and how late the API is looked at
MOODY = """
import asyncio, os, pathlib
from swiftclaw import Agent

agent = Agent("moody")
file = pathlib.Path("FOLDER") / f"mood-{os.getpid()}"
asked = 0


def mood():
    try:
        return file.read_text()
    except FileNotFoundError:
        return "well"


@agent.on_message
async def handle(message):
    global asked
    asked += 1
    if mood() == "fail" or (mood() == "half" and asked % 2):
        raise RuntimeError("as it was told")
    while mood() == "mute":
        await asyncio.sleep(0.1)
    if message == "stream":
        return pieces()
    await asyncio.sleep(0.05)
    return "ok"


async def pieces():
    for number in range(15):
        await asyncio.sleep(0.1)
        if number == 5 and mood() == "break":
            raise RuntimeError("in the middle")
        yield str(number)
"""


class Moody:
    """6 instances in 3 regions, whose behaviour a file per process switches; an edge in two of the regions."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ports = {"us-east-1": cluster.port, "eu-west-1": free_port()}
        self.here, self.there = (f"http://127.0.0.1:{port}" for port in self.ports.values())

    def start(self) -> None:
        folder = self.cluster.folder
        (folder / "moody.py").write_text(MOODY.replace("FOLDER", str(folder)))
        breaker = {"failureThreshold": THRESHOLD, "timeout": f"{TIMEOUT_S}s", "resetTimeout": f"{RESET_S}s"}
        regions = {name: {"instances": 2, "priority": 1} for name in ("us-east-1", "eu-west-1", "ap-southeast-1")}
        limits = {"requestTimeout": f"{REQUEST_TIMEOUT_S}s"}
        self.cluster.write(
            {"my-agent": my_agent(agent="moody:agent", regions=regions, circuitBreaker=breaker, limits=limits)},
            gateways=[{"region": name, "port": port, "replicas": 1} for name, port in self.ports.items()],
        )
        self.cluster.up()

    def become(self, mood: str, *pids: int) -> None:
        for pid in pids:
            file = self.cluster.folder / f"mood-{pid}"
            beside = file.with_suffix(".new")
            beside.write_text(mood)
            beside.rename(file)

    def row(self, instance: str) -> dict[str, Any]:
        return next(row for row in self.cluster.instances() if row["id"] == instance)

    def circuits(self) -> set[str]:
        return {row["circuit"] for row in self.cluster.instances()}

    def is_well(self) -> bool:
        return len(self.cluster.healthy()) == 6 and self.circuits() == {"closed"}

    async def await_circuit(self, instance: str, state: str, seconds: float = 30) -> float:
        """When the API first showed it."""
        await asyncio.to_thread(until, lambda: self.row(instance)["circuit"] == state, f"{instance} {state}", seconds)
        return time.monotonic()

    async def recover(self) -> None:
        """Until all six are well: half-open breakers need traffic to close."""
        if self.is_well():
            return
        here, there = Load(self.here, rate=30), Load(self.there, rate=30)

        async def become_well() -> None:
            await asyncio.to_thread(until, self.is_well, "all six well", 60)

        await asyncio.gather(here.run(1, become_well), there.run(1, become_well))


@pytest.fixture(scope="module")
def running(shared: Cluster) -> Moody:
    moody = Moody(shared)
    moody.start()
    return moody


@pytest.fixture
async def moody(running: Moody) -> Any:
    """All six well, and well again afterwards."""
    await running.recover()
    yield running
    running.become("well", *running.cluster.healthy().values())
    await running.recover()
    until(running.cluster.nothing_in_flight, "all counts back at 0", 30)


def suffered(sent: Sent, victim: str) -> bool:
    """It waited for the one that did not answer."""
    return not sent.ok or (sent.instance == victim and sent.seconds > TIMEOUT_S * 0.9)


async def test_one_that_always_fails_is_out_at_every_gateway_after_the_threshold_and_back_when_mended(moody: Moody) -> None:
    victim, pid = next(iter(moody.cluster.healthy().items()))
    here, there = Load(moody.here, rate=180), Load(moody.there, rate=20)
    at: dict[str, float] = {}

    async def fail() -> None:
        at["failing"] = time.monotonic()
        moody.become("fail", pid)
        at["open"] = await moody.await_circuit(victim, "open")
        await asyncio.sleep(RESET_S)  # its first probe fails too
        at["mended"] = time.monotonic()
        moody.become("well", pid)
        at["closed"] = await moody.await_circuit(victim, "closed")
        await asyncio.sleep(1)

    said, also_said = await asyncio.gather(here.run(4, fail), there.run(RESET_S + 3))
    failed, elsewhere = here.failed(), there.failed()
    note(
        f"one answers 500 to all: here {said}; at the other gateway {also_said}; "
        f"open after {at['open'] - at['failing']:.2f} s, closed {at['closed'] - at['mended']:.2f} s after it was mended"
    )
    for sent in failed + elsewhere:
        assert (sent.status, sent.kind, sent.instance) == (500, "agent_error", victim)
    at_once = [sent for sent in failed if sent.began <= at["open"]]
    assert THRESHOLD <= len(at_once) <= THRESHOLD + 5, "30/s x 0.05 s is 1.5 in flight on one"
    assert len(failed) - len(at_once) <= PROBES
    assert len(elsewhere) < THRESHOLD, "the other gateway has tried it out for itself"
    silent = [s for s in here.sent + there.sent if at["open"] + 1 + HEARD_S < s.began < at["mended"] and s.instance == victim]
    assert len(silent) <= PROBES
    assert victim in {sent.instance for sent in here.since(at["closed"])}


async def test_one_that_fails_half_of_its_requests_spoils_no_other(moody: Moody) -> None:
    victim, pid = next(iter(moody.cluster.healthy().items()))
    moody.become("half", pid)
    load = Load(moody.here)
    said = await load.run(5)
    asked = [sent for sent in load.sent if sent.instance == victim]
    note(f"one answers 500 to half: {said}; it was asked {len(asked)} times, its circuit is {moody.row(victim)['circuit']}")
    assert asked and {(sent.kind, sent.instance) for sent in load.failed()} == {("agent_error", victim)}
    assert len(load.failed()) <= len(asked) / 2 + 1


async def _out(moody: Moody, stop: Callable[[], None], go_on: Callable[[], None], victim: str, until_state: str) -> None:
    """One of six stops answering under 200/s: what is sent to it until the breaker opens is all that suffers."""
    load = Load(moody.here)
    at: dict[str, float] = {}

    async def act() -> None:
        at["stopped"] = time.monotonic()
        stop()
        try:
            at["open"] = await moody.await_circuit(victim, "open")
            if until_state:
                await asyncio.to_thread(until, lambda: moody.row(victim)["state"] == until_state, until_state, 30)
            await asyncio.sleep(2)
        finally:
            go_on()
        at["mended"] = time.monotonic()
        at["closed"] = await moody.await_circuit(victim, "closed", 60)
        await asyncio.to_thread(until, moody.is_well, "all six well", 30)
        await asyncio.sleep(1)

    said = await load.run(4, act)
    affected = [sent for sent in load.sent if suffered(sent, victim) and sent.began < at["mended"]]
    probes = [sent for sent in affected if sent.began > at["open"] + HEARD_S]
    last = max(sent.began - at["stopped"] for sent in affected if sent not in probes)
    note(
        f"{said}; {len(affected)} affected, {len(probes)} of them probes; the last one began after {last:.2f} s; the API said "
        f"open after {at['open'] - at['stopped']:.2f} s, closed {at['closed'] - at['mended']:.2f} s after it went on"
    )
    assert {sent.kind for sent in load.failed()} <= {"request_timeout", "instance_failed"}
    assert all(sent.seconds < REQUEST_TIMEOUT_S + 3 for sent in affected)
    assert len(probes) <= PROBES
    assert last <= TIMEOUT_S + 1 + 2, "2 s of slack for a machine that is busy with other things"
    assert THRESHOLD <= len(affected) - len(probes) <= THRESHOLD + 200 / 6 * (last + 0.5), "more than what one gets"
    assert victim in {sent.instance for sent in load.since(at["closed"])}


async def test_one_that_never_answers_is_out_after_the_breakers_timeout(moody: Moody) -> None:
    victim, pid = next(iter(moody.cluster.healthy().items()))
    await _out(moody, lambda: moody.become("mute", pid), lambda: moody.become("well", pid), victim, "")


async def test_a_frozen_process_is_out_after_the_breakers_timeout_and_comes_back_unharmed(moody: Moody) -> None:
    victim, pid = next(iter(moody.cluster.healthy().items()))
    await _out(moody, lambda: os.kill(pid, signal.SIGSTOP), lambda: os.kill(pid, signal.SIGCONT), victim, "ejected")
    assert moody.cluster.healthy()[victim] == pid


async def test_a_stream_that_breaks_off_says_so_and_the_others_end_as_they_should(moody: Moody) -> None:
    (breaking, pid), (dying, killed_pid) = list(moody.cluster.healthy().items())[:2]
    moody.become("break", pid)

    async def kill() -> None:
        os.kill(killed_pid, signal.SIGKILL)

    load = Load(moody.here, rate=20, stream=True, body={"message": "stream"})
    note(f"streams, one instance breaks them off, one is killed: {await load.run(4, kill, at=2)}")
    by_kind = {"agent_error": breaking, "instance_failed": dying}
    for sent in load.failed():
        if sent.status == 502:  # it had not begun when its instance died
            assert sent.kind == "instance_failed" and dying in sent.text
            continue
        assert by_kind[sent.kind] == sent.instance
        assert sent.status == 200 and sent.text.count("event: error") == 1 and "[DONE]" not in sent.text
    assert {sent.kind for sent in load.failed() if sent.status == 200} == set(by_kind)
    assert all(sent.ok == sent.text.endswith("data: [DONE]\n\n") for sent in load.sent)
    assert all(sent.text.count("delta") == 15 for sent in load.sent if sent.ok)


def _assert_told_at_once(load: Load, kinds: set[str]) -> Sent:
    """Every refusal: quickly, by name, with the time after which to ask again. Returns the slowest."""
    refused = [sent for sent in load.failed() if sent.kind in kinds]
    assert refused
    assert all(int(sent.retry_after) >= 1 for sent in refused)
    slowest = max(refused, key=lambda sent: sent.seconds)
    assert slowest.seconds < 1 + 2, "1 s, and slack for a machine that starts six processes meanwhile"
    return slowest


async def test_all_instances_dead_is_told_at_once_and_service_resumes_by_itself(moody: Moody) -> None:
    pids = set(moody.cluster.healthy().values())
    at: dict[str, float] = {}

    def are_replaced() -> bool:
        healthy = moody.cluster.healthy().values()
        return len(healthy) == 6 and pids.isdisjoint(healthy)

    async def kill() -> None:
        at["killed"] = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(until, are_replaced, "six others", 60)
        at["back"] = time.monotonic()
        await asyncio.sleep(2)

    load = Load(moody.here, rate=60)
    said = await load.run(4, kill)
    slowest = _assert_told_at_once(load, {"no_healthy_instance", "circuit_open"})
    first = min(sent.began for sent in load.since(at["killed"] + 0.5) if sent.ok)
    note(
        f"all six killed: {said}; the slowest refusal took {slowest.seconds:.3f} s; the first answer after "
        f"{first - at['killed']:.1f} s, all six back after {at['back'] - at['killed']:.1f} s"
    )
    assert {sent.kind for sent in load.failed()} <= {"no_healthy_instance", "circuit_open", "instance_failed"}
    broken = [sent for sent in load.failed() if sent.kind == "instance_failed"]
    assert all(sent.began < at["killed"] + 0.5 for sent in broken)
    assert all(sent.ok for sent in load.since(at["back"] + 1))


async def test_all_instances_failing_opens_every_breaker_and_service_resumes_by_itself(moody: Moody) -> None:
    pids = moody.cluster.healthy().values()
    at: dict[str, float] = {}

    async def fail() -> None:
        moody.become("fail", *pids)
        await asyncio.to_thread(until, lambda: moody.circuits() == {"open"}, "all six open", 30)
        await asyncio.sleep(1)
        moody.become("well", *pids)
        at["mended"] = time.monotonic()
        await asyncio.to_thread(until, moody.is_well, "all six well", 60)
        at["well"] = time.monotonic()
        await asyncio.sleep(1)

    load = Load(moody.here, rate=60)
    said = await load.run(4, fail)
    slowest = _assert_told_at_once(load, {"circuit_open"})
    note(
        f"all six fail: {said}; the slowest refusal took {slowest.seconds:.3f} s; "
        f"all six back {at['well'] - at['mended']:.1f} s after they were mended"
    )
    assert {sent.kind for sent in load.failed()} <= {"agent_error", "circuit_open"}
    raised = [sent for sent in load.failed() if sent.kind == "agent_error"]
    assert len(raised) <= 6 * (THRESHOLD + 2 + PROBES)
    assert all(sent.ok for sent in load.since(at["well"]))
