"""Processes without Ray that forward for a gateway: how it starts, watches and ends them, and what one is."""
