"""What is valid YAML and may not be what was meant: the findings of yamllint that change a file's content."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.documents import doubtful


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: yes\nb: Off\n", ["line 1: YAML 1.1 reads yes as true", "line 2: YAML 1.1 reads Off as false"]),
        (
            "on: 1\nlist: [No, TRUE]\n",
            ["line 1: YAML 1.1 reads on", "line 2: YAML 1.1 reads No", "line 2: YAML 1.1 reads TRUE"],
        ),
        ("a: true\nb: false\nc: 'yes'\nd: \"no\"\ne: nothing\n", []),
        ("a: &x 1\nb: *x\n", []),
        ("a: &x 1\nb: 2\n", ["line 1: the anchor &x is never used"]),
        ("a: &x 1\nb: *x\nc: &x 2\n", ["line 3: the anchor &x is defined on line 1 too"]),
        ("a:   1   \n\n\n\nb: {c:  2}\n" + "# " + 100 * "x", []),  # style
        ("a: [", []),  # `read_document` reports it
    ],
)
def test_each_doubt_is_one_line_with_its_place(tmp_path: Path, text: str, lines: list[str]) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    found = doubtful(file)
    assert len(found) == len(lines)
    assert all(sentence.startswith(line) for sentence, line in zip(found, lines, strict=True)), found


def test_json_and_the_shipped_file_have_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"yes": true}')
    assert doubtful(tmp_path / "a.json") == doubtful(tmp_path / "absent.yaml") == []
    assert doubtful(Path(__file__).parents[3] / "cluster.yaml") == []
