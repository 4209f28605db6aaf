"""The process that runs an Agent."""
