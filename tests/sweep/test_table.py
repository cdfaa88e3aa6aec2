"""The table of a sweep: what stands in it, in which order and how wide."""

from __future__ import annotations

import csv
import json

from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.sweep.table import Row, failures, read_rows, table, write_csv


def run(folder, number, status=None, value=None, overrides=(), **more):
    path = folder / str(number)
    path.mkdir()
    (path / "config.yaml").write_text("seed: 1\n")
    (path / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides))
    if status is not None:
        metric = None if value is None else {"name": "val/loss", "value": value, "step": 10}
        result = {"status": status, "metric": metric, "seconds": 90.0, "steps": 20, "tokens": 640}
        (path / "result.json").write_text(json.dumps(result | more))


def test_finished_runs_stand_first_by_their_metric_and_each_status_is_told(tmp_path):
    run(tmp_path, 0, "failed", 0.5, error="it broke\nbadly")
    run(tmp_path, 1, "finished", 3.0)
    run(tmp_path, 2, "finished", 2.0, overrides=["lr=1,5", "seed=7", "name=x"])
    run(tmp_path, 3, "finished", 1.0, pruned=True)
    run(tmp_path, 4, "interrupted", 2.5)
    run(tmp_path, 5)
    run(tmp_path, 6)
    run(tmp_path, 10, "finished")
    (tmp_path / "11").mkdir()
    (tmp_path / "notes").mkdir()
    with FileLock(tmp_path / "6/.lock"):
        rows = read_rows(tmp_path, ["lr", "seed"], {1: {"lr": "2", "seed": "3"}, 12: {"lr": "9"}}, {11: "no such file"})
    found = [(row.job, row.status) for row in rows]
    assert found == [
        (2, "finished"), (1, "finished"), (10, "finished"), (3, "pruned"), (0, "failed"), (4, "interrupted"),
        (5, "killed"), (6, "running"), (11, "failed"), (12, "not run"),
    ]  # fmt: skip
    assert rows[0].values == {"lr": "1,5", "seed": "7"}  # read from its overrides.txt
    lines = failures(rows)
    assert lines[0].startswith("run 0 failed: it broke")
    assert lines[1] == "run 11 failed: no such file"

    write_csv(tmp_path / "sweep.csv", rows, ["lr", "seed"])
    with open(tmp_path / "sweep.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [int(line["job"]) for line in read] == [row.job for row in rows]
    assert read[0] == {
        "job": "2", "lr": "1,5", "seed": "7", "status": "finished", "metric": "2.0", "step": "10", "minutes": "1.5",
        "folder": str(tmp_path / "2"), "steps": "20", "tokens": "640", "seconds": "90.0", "error": "",
    }  # fmt: skip
    assert next(line for line in read if line["job"] == "0")["error"] == "it broke\nbadly"


def test_what_is_printed(tmp_path):
    run(tmp_path, 0, "finished", 4.16931)
    run(tmp_path, 1, "failed")
    rows = read_rows(tmp_path, ["data.path"], {0: {"data.path": "a" * 50}, 1: {"data.path": "b"}})
    assert table(rows, ["data.path"], 70).splitlines() == [
        "job  data.path                    status    val/loss  at step  minutes",
        "  0  aaaaaaaaaaaaaaaaaaaaaaaaa..  finished    4.1693       10     1:30",
        "  1  b                            failed                          1:30",
    ]


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=60)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.integers(75, 200))
def test_the_width_is_kept_and_no_figure_is_cut(tmp_path_factory, values, width):
    result = {"metric": {"name": "val/loss", "value": 1.23456, "step": 123456}, "seconds": 6000.0}
    rows = [Row(n, tmp_path_factory.getbasetemp(), {"a": a, "b": b}, "finished", result) for n, (a, b) in enumerate(values)]
    lines = table(rows, ["a", "b"], width).splitlines()
    assert len(lines) == 1 + len(rows)
    assert max(map(len, lines)) <= width
    for line in lines[1:]:
        assert line.split()[-4:] == ["finished", "1.2346", "123,456", "1:40:00"]
