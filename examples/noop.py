"""An agent that does nothing, so that a benchmark measures everything else."""

from swiftclaw import Agent

agent = Agent(name="noop")


@agent.on_message
async def handle(message: object) -> str:
    return "ok"
