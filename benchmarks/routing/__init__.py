"""The parts of `routers.py`: the stub agent, the routers in front of it, the measures, and the report."""
