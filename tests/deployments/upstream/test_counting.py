"""What a gateway tells of its requests: each is counted once, with the time that its choice took."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from cluster.messages import Observation
from deployments.request.exchange import Exchange
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane

agent = Agent("my-agent", model="echo")


@agent.on_message
async def echo(message: str) -> str:
    return message


async def test_every_request_is_counted_once_with_its_choice(plane: DataPlane) -> None:
    await plane.add(agent, 3)
    for number in range(30):
        async with plane.client.post("/agents/my-agent/messages", json={"message": str(number)}) as answer:
            assert answer.status == 200
            await answer.read()
    seen = plane.reporter.observation()
    counts = seen.instances.values()
    assert sum(sum(one.codes.values()) for one in counts) == 30
    assert sum(sum(one.routings) for one in counts) == 30
    assert 0 < sum(one.routing_sum_s for one in counts) < sum(one.duration_sum_s for one in counts)


async def test_a_request_that_is_tried_again_is_chosen_for_once(plane: DataPlane) -> None:
    await plane.add(agent, 2)
    await plane.end("my-agent-instance-1")
    for number in range(4):
        async with plane.client.post("/agents/my-agent/messages", json={"message": str(number)}) as answer:
            assert answer.status == 200
            await answer.read()
    seen = plane.reporter.observation()
    assert sum(sum(one.codes.values()) for one in seen.instances.values()) == 4
    assert sum(sum(one.routings) for one in seen.instances.values()) == 4
    assert seen.unreachable == {("my-agent", "my-agent-instance-1")}


slow = Agent("slow", model="echo")


@slow.on_message
async def sleep(message: str) -> str:
    await asyncio.sleep(30)
    return message


def every(seen: Observation) -> Counter[int]:
    """By status, over all that `swiftclaw_requests_total` adds up."""
    codes = sum((Counter(one.codes) for one in seen.instances.values()), Counter[int]())
    for (_, status), count in seen.refusals.items():
        codes[status] += count
    return codes


async def test_what_failed_at_an_instance_is_counted_there_and_not_as_a_refusal_too(plane: DataPlane) -> None:
    plane.blocks["slow"] = {"timeouts": {"request": "200ms"}}
    await plane.add(slow, 1)
    answers = Counter[int]()
    for path, body in (("slow", {"message": "hi"}), ("nobody", {"message": "hi"})):
        async with plane.client.post(f"/agents/{path}/messages", json=body) as answer:
            answers[answer.status] += 1
    async with plane.client.get("/agents/nobody/x", headers={f"x-{n}": "y" * 6000 for n in range(11)}) as answer:
        answers[answer.status] += 1
    seen = plane.reporter.observation()
    assert every(seen) == answers == {504: 1, 404: 1, 431: 1}
    assert seen.refusals == {("", 404): 1, ("", 431): 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_it_is_counted_before_its_last_byte_goes_out(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """So that no gateway can be killed between a client's whole answer and its count."""
    await plane.add(agent, 1)
    counted: list[tuple[bool, dict[int, int]]] = []
    write = Exchange.write

    async def watched(exchange: Exchange, piece: bytes, more: bool) -> None:
        (pool,) = plane.agents.pools.values()
        (backend,) = pool.backends()
        counted.append((more, backend.tally.codes))
        await write(exchange, piece, more)

    monkeypatch.setattr(Exchange, "write", watched)
    async with plane.client.post("/agents/my-agent/messages", json={"message": "hi", "stream": stream}) as answer:
        await answer.read()
    assert counted[-1] == (False, {200: 1})
    assert all(codes == {} for more, codes in counted if more)
    assert every(plane.reporter.observation()) == {200: 1}
