"""The stub as an agent of SwiftClaw: the same app, mounted."""

from routing import stub
from swiftclaw import Agent

agent = Agent(name="stub")
agent.mount(stub.from_environment())
