"""How hypothesis runs here: no deadline and no complaint about slowness (a busy machine is no bug), few enough examples.

And Ctrl-C: a shell starts what runs in the background deaf to it, and programs that tests start would inherit that.
"""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.gates.second_run", "tests.gates.coverage_floors"]
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=50, **_PATIENT)  # type: ignore[arg-type]
settings.register_profile("thorough", max_examples=2000, **_PATIENT)  # type: ignore[arg-type]  # --hypothesis-profile=thorough
settings.load_profile("quick")
signal.signal(signal.SIGINT, signal.default_int_handler)
