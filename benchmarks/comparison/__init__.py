"""Live contenders on this machine, the load on them, and the report: the parts of `compare.py`."""

HOST = "127.0.0.1"  # everything listens here and nowhere else, so far as it can be told
READY = "ready"  # what `plain_serve` says when it answers
