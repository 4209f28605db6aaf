"""What a gateway tells of its requests: each is counted once, with the time that its choice took."""

from __future__ import annotations

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
    seen = plane.routing.observation("g")
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
    seen = plane.routing.observation("g")
    assert sum(sum(one.codes.values()) for one in seen.instances.values()) == 4
    assert sum(sum(one.routings) for one in seen.instances.values()) == 4
    assert seen.unreachable == {("my-agent", "my-agent-instance-1")}
