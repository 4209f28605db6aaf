"""How hypothesis runs here: no deadline and no complaint about slowness (a busy machine is no bug), few enough examples."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=50, **_PATIENT)  # type: ignore[arg-type]
settings.register_profile("thorough", max_examples=2000, **_PATIENT)  # type: ignore[arg-type]  # --hypothesis-profile=thorough
settings.load_profile("quick")
