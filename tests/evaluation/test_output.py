"""Numbers as text, and tables in files, to which several processes add rows."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpt2x.errors import UserError
from gpt2x.evaluation.output import add_row, score


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_number_is_told_with_its_interval_where_it_has_one():
    assert score({"value": 0.912, "low": 0.8911, "high": 0.92934}) == "0.9120 (0.8911 to 0.9293)"
    assert score({"value": 57.25, "low": 48.11, "high": 66.0}, 1) == "57.2 (48.1 to 66.0)"
    assert score({"value": 0.5, "low": None, "high": None}, 2) == "0.50"
    assert score({"value": None, "low": None, "high": None}) == "-"


def test_a_table_has_the_columns_of_all_of_its_rows(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    add_row(str(path), {"run": 'a, "b"', "x": 0.1 + 0.2})
    add_row(str(path), {"run": "line\nend", "y": "é", "x": 2})
    assert rows(path) == [{"run": 'a, "b"', "x": "0.30000000000000004", "y": ""}, {"run": "line\nend", "x": "2", "y": "é"}]


def test_rows_that_come_at_the_same_time_are_all_there(tmp_path):
    path = tmp_path / "table.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add_row(str(path), {"run": i, f"column {i % 3}": i}), range(40)))
    assert sorted(int(row["run"]) for row in rows(path)) == list(range(40))
    assert all(row[f"column {int(row['run']) % 3}"] == row["run"] for row in rows(path))


def test_another_file_is_left_as_it_is(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("name,age\nAnna,5\n")
    with pytest.raises(UserError, match="this is no table of evaluations, which has a column 'run'"):
        add_row(str(path), {"run": 1})
    assert path.read_text() == "name,age\nAnna,5\n"
    path.write_bytes(b"\xff\xfe\x00 no text")
    with pytest.raises(UserError, match="this is no table of evaluations"):
        add_row(str(path), {"run": 1})
