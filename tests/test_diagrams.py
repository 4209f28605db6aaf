"""The pictures of docs/architecture.md are drawn from their current sources and show the tree as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployments.proxy.proxied_request import RequestState
from docs.diagrams import render

ROOT = Path(__file__).parents[1]
SVG = {name: (render.DIAGRAMS / f"{name}.svg").read_text("utf-8") for name in render.SOURCES}


@pytest.mark.parametrize("name", render.SOURCES)
def test_a_picture_is_as_new_as_its_source(name: str) -> None:
    assert render.drawn_from(SVG[name]) == render.fingerprint(render.SOURCES[name]()), "run scripts/diagrams"


def test_the_list_of_packages_is_as_new_as_their_docstrings() -> None:
    assert render.block() == render.list_of_packages(), "run scripts/diagrams"


def test_the_page_shows_every_picture() -> None:
    assert re.findall(r"\]\(diagrams/(\w+)\.svg\)", render.PAGE.read_text("utf-8")) == list(render.SOURCES)


@pytest.mark.parametrize("package", render.PACKAGES)
def test_the_map_names_every_sub_package_and_no_other(package: str) -> None:
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / package).rglob("*.py")}
    below = {folder.relative_to(package).as_posix() for folder in folders if folder.parts != (package,)}
    floors = re.split(rf">({'|'.join(render.PACKAGES)})/</text>", SVG["packages"])
    rooms = re.findall(r">([a-z_/]+)/</text>", floors[floors.index(package) + 1])
    assert sorted(rooms) == sorted(below)


def test_the_files_of_the_request_picture_exist() -> None:
    rows = re.findall(r"<tr>(.*?)</tr>", render.SOURCES["request"](), re.DOTALL)
    places = {"#ffffff": "deployments", "#eaf6ec": "policies"}
    for row in rows:
        for colour, names in re.findall(r'bgcolor="(#\w+)">([\w/., ]+)</td>', row):
            for name in names.split(", "):
                assert (ROOT / places[colour] / name).exists(), name


def test_the_states_in_the_picture_are_those_in_the_code() -> None:
    drawn = set(re.findall(r"\b[A-Z]{4,}\b", render.SOURCES["states"]().partition("]\n\n")[2]))
    assert drawn == set(RequestState.__members__)


def test_the_files_of_the_control_picture_exist() -> None:
    folders = re.findall(r"<b>(\w+/)</b>", render.SOURCES["control"]())
    assert len(folders) == 5 and all((ROOT / "cluster" / folder).is_dir() for folder in folders)


@pytest.mark.parametrize("name", render.SOURCES)
def test_every_colour_has_one_for_the_dark_mode(name: str) -> None:
    body = SVG[name].partition("</style>")[2]
    assert set(re.findall(r"#[0-9a-f]{6}", body)) <= set(render.DARK)
    assert "prefers-color-scheme: dark" in SVG[name]
