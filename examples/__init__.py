"""Agents to start from: minimal, support (memory, streaming, an app of its own), noop (for benchmarks)."""
