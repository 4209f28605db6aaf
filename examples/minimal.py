"""The smallest agent: it has no handler, so its model answers, and "echo" says what it was told."""

from swiftclaw import Agent

agent = Agent(name="minimal", model="echo")
