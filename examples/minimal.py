"""The smallest agent: it has no handler, so its model answers; "echo" repeats the message."""

from swiftclaw import Agent

agent = Agent(name="minimal", model="echo")
