"""No command of these tests finds a Ray cluster that happens to run on this machine."""

from __future__ import annotations

import pytest

from swiftclaw.cli.ray_cluster import processes


@pytest.fixture(autouse=True)
def no_ray_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ray_addresses", list)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
