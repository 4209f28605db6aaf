"""How hypothesis runs here: no deadline (a busy machine is no bug), few enough examples for a run of seconds."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("policies", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=2000)  # pytest --hypothesis-profile=thorough
settings.load_profile("policies")
