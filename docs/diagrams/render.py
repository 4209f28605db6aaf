"""Draws docs/diagrams/*.svg with Graphviz and writes the list of packages into docs/architecture.md: `scripts/diagrams`.

request.dot, states.dot and control.dot are written by hand; the map of packages is made of the packages' own docstrings. Each
SVG names the hash of its source, so that a test finds one that is out of date, and follows the reader's light or dark mode.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
import subprocess
import textwrap
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIAGRAMS = Path(__file__).parent
PAGE = ROOT / "docs/architecture.md"
PACKAGES = {
    "swiftclaw": "#f6eefb",
    "deployments": "#fdf3e7",
    "cluster": "#eef2fd",
    "policies": "#eaf6ec",
}  # an import points down
FONT = "Helvetica,Arial,sans-serif"
WIDTH = 840  # of a floor, in points
MOST_COLUMNS = 4
CHARACTER = 7.3  # the mean width of one, in points

DARK = {  # colours of the sources -> those of the dark mode
    "#ffffff": "#161b22",
    "#1f2328": "#e6edf3",
    "#57606a": "#a4adb8",
    "#6e7781": "#8b949e",
    "#8c959f": "#6e7681",
    "#f6f8fa": "#21262d",
    "#fdf3e7": "#3a2a12",
    "#c9832b": "#c9832b",
    "#eef2fd": "#1c2747",
    "#5b78d6": "#5b78d6",
    "#eaf6ec": "#16301e",
    "#f6eefb": "#33203f",
}


def first_line(package: Path) -> str:
    """The first sentence of the package's docstring."""
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8"))) or ""
    return docstring.partition("\n")[0]


def sub_packages(package: str) -> list[Path]:
    return sorted(file.parent for file in (ROOT / package).rglob("*/__init__.py") if file.parent != ROOT / package)


def map_of_packages() -> str:
    """The four packages as floors, their sub-packages as rooms, in DOT."""
    floors = "\n".join(_floor(package, colour) for package, colour in PACKAGES.items())
    arrows = " -> ".join(PACKAGES)
    return f"""digraph packages {{
  rankdir=TB; ranksep=0.4; pad=0.3; bgcolor="#ffffff"
  node [fontname="{FONT}" fontsize=13 fontcolor="#1f2328" shape=plain]
  edge [fontname="{FONT}" fontsize=12 fontcolor="#57606a" color="#6e7781" arrowsize=0.8 penwidth=1.4]
{floors}
  {arrows} [label="  imports"]
}}
"""


def _floor(package: str, colour: str) -> str:
    rooms = sub_packages(package)
    rows_needed = math.ceil(len(rooms) / MOST_COLUMNS)
    columns = math.ceil(len(rooms) / rows_needed)
    title = f"<b>{package}/</b>  <font color='#57606a'>{_text(ROOT / package)}</font>"
    rows = [f"<tr><td colspan='{columns}' align='left'>{title}</td></tr>"]
    for start in range(0, len(rooms), columns):
        cells = [_room(package, room, WIDTH // columns) for room in rooms[start : start + columns]]
        cells += ["<td></td>"] * (columns - len(cells))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = f"<table border='0' cellspacing='6' cellpadding='8' cellborder='0' bgcolor='{colour}' style='rounded'>"
    return f"  {package} [label=<{table}{''.join(rows)}</table>>]"


def _room(package: str, room: Path, width: int) -> str:
    name = room.relative_to(ROOT / package).as_posix()
    lines = textwrap.wrap(_text(room), int((width - 16) / CHARACTER), break_on_hyphens=False)
    text = "".join(f"{line}<br align='left'/>" for line in lines)
    head = f"<b>{name}/</b><br align='left'/><font point-size='5'> <br/></font>"
    return f"<td bgcolor='#ffffff' align='left' valign='top' width='{width}'>{head}{text}</td>"


def _text(package: Path) -> str:
    return escape(first_line(package).replace("`", ""), quote=False)


def list_of_packages() -> str:
    """The same as text: a table for readers and for searching."""
    lines = ["| package | contains |", "| --- | --- |"]
    for package in PACKAGES:
        for folder in (ROOT / package, *sub_packages(package)):
            name = folder.relative_to(ROOT).as_posix()
            link = f"[{name}/](../{name}/__init__.py)"
            lines.append(f"| {f'**{link}**' if name == package else link} | {first_line(folder)} |")
    return "\n".join(lines) + "\n"


SOURCES: Mapping[str, Callable[[], str]] = {  # SVG -> its source in DOT
    "request": lambda: (DIAGRAMS / "request.dot").read_text("utf-8"),
    "states": lambda: (DIAGRAMS / "states.dot").read_text("utf-8"),
    "control": lambda: (DIAGRAMS / "control.dot").read_text("utf-8"),
    "packages": map_of_packages,
}


def fingerprint(source: str) -> str:
    return hashlib.sha256((source + repr(sorted(DARK.items()))).encode()).hexdigest()[:16]


def drawn_from(svg: str) -> str:
    """The fingerprint that the SVG carries."""
    (found,) = re.findall(r"<!-- source: (\w+) -->", svg)
    return str(found)


def draw(source: str) -> str:
    svg = subprocess.run(["dot", "-Tsvg"], input=source, capture_output=True, text=True, check=True).stdout
    head, opening, body = re.split(r"(<svg [^>]*>)", svg, maxsplit=1)
    body = re.sub(r"<!--.*?-->\n?|<title>.*?</title>\n?", "", body, flags=re.DOTALL)
    head = re.sub(r"<!--.*?-->\n?", "", head, flags=re.DOTALL)
    return f"{head}{opening}\n<!-- source: {fingerprint(source)} -->\n{_style()}{body}"


def _style() -> str:
    rules = [
        f'[{attribute}="{light}"] {{ {attribute}: {dark} }}'
        for light, dark in DARK.items()
        for attribute in ("fill", "stroke")
        if light != dark
    ]
    return "<style>\n@media (prefers-color-scheme: dark) {\n" + "\n".join(rules) + "\n}\n</style>"


def block() -> str:
    """The list of packages as docs/architecture.md has it now."""
    (content,) = re.findall(r"<!-- packages:begin -->\n(.*?)<!-- packages:end -->", PAGE.read_text("utf-8"), re.DOTALL)
    return str(content)


def main() -> None:
    for name, source in SOURCES.items():
        (DIAGRAMS / f"{name}.svg").write_text(draw(source()), "utf-8")
    before, _, after = PAGE.read_text("utf-8").partition(f"<!-- packages:begin -->\n{block()}")
    PAGE.write_text(f"{before}<!-- packages:begin -->\n{list_of_packages()}{after}", "utf-8")


if __name__ == "__main__":
    main()
