"""Claims about `swiftclaw schema`."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from swiftclaw import cli


def test_it_prints_the_schema_that_is_in_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["schema"]) == 0
    printed = capsys.readouterr().out
    assert printed == (files("cluster.config") / "schema.json").read_text("utf-8")
    assert json.loads(printed)["$schema"].endswith("2020-12/schema")
