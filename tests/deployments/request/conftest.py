"""The access log in a file of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.request import access_log
from tests.deployments.helpers import Lines


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    file = tmp_path / "access.log"
    access_log.to_file(file)
    yield Lines(file)
    handler = access_log.log.handlers[-1]
    access_log.log.removeHandler(handler)
    handler.close()
    access_log.log.setLevel(logging.NOTSET)
    access_log.log.propagate = True
