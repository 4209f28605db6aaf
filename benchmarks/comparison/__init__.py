"""The parts of `compare.py`: the contenders, the load, and the report."""

HOST = "127.0.0.1"  # everything listens here and nowhere else, as far as it can be configured
READY = "ready"  # what `plain_serve` prints when it accepts requests
