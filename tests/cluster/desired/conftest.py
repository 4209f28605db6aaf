"""A Controller without Ray (world.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from tests.cluster.desired.world import World


@pytest.fixture(autouse=True)
def ray_says(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    context = SimpleNamespace(get_node_id=lambda: "head")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    yield


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.rounds()
    return made
