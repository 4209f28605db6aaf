"""The data plane: gateways, instances, and the one place that wires them together (app.py)."""
