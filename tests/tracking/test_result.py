"""result.json as other programs, other versions and damaged disks may leave it: what is read can be relied on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2x.compare.runs import load_runs
from gpt2x.sweep.table import failures, read_rows, table, write_csv
from gpt2x.tracking.description import code_version
from gpt2x.tracking.result import read_result

WHOLE = {
    "status": "failed", "error": "no", "metric": {"name": "val/loss", "value": 2.5, "step": 4},
    "last": {"val/loss": 2.5, "x": None},
    "steps": 4, "tokens": 64, "seconds": 1, "flops": 1e9, "parameters": 10, "trained_parameters": 10, "config_hash": "c",
    "overrides": ["seed=1"], "started": "2026-11-24T10:00:00+0000", "versions": {"gpt2x": "1"}, "git_commit": None,
    "platform": "x", "peak_memory_bytes": 5, "pruned": False,
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "value", "step", "gpt2x"]), inner),
    max_leaves=5,
)


def test_what_training_writes_is_all_read(tmp_path):
    problems = []
    for result in (WHOLE, WHOLE | {"metric": None, "git_commit": "abc", "status": "finished"}, {"status": "interrupted"}):
        (tmp_path / "result.json").write_text(json.dumps(result))
        assert read_result(tmp_path, problems) == result
    assert problems == []


@pytest.mark.parametrize(("key", "value"), [
    ("metric", 3), ("metric", {}), ("metric", {"name": "val/loss", "value": "low", "step": 1}), ("overrides", [1]),
    ("overrides", "seed=1"), ("error", None), ("seconds", "1"), ("steps", 10**400), ("steps", 1.5), ("versions", []),
    ("last", []), ("last", {"val/loss": 10**400}), ("pruned", "no"), ("git_commit", 1),
])  # fmt: skip
def test_an_entry_of_another_kind_is_left_out_and_named(tmp_path, key, value):
    (tmp_path / "result.json").write_text(json.dumps(WHOLE | {key: value}))
    problems = []
    assert read_result(tmp_path, problems) == {name: other for name, other in WHOLE.items() if name != key}
    assert problems == [f"{tmp_path / 'result.json'}: damaged, without {key}"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"status": ["a"]}', '{"status": "lost"}', '{"status": null}', "[" * 100_000])
def test_one_that_does_not_tell_how_the_run_ended_is_none(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    problems = []
    assert read_result(tmp_path, problems) == {}
    assert problems == [f"{tmp_path / 'result.json'}: damaged, taken for missing"]
    (tmp_path / "result.json").unlink()
    assert read_result(tmp_path, problems) == {}
    assert len(problems) == 1


@settings(max_examples=40)
@given(st.fixed_dictionaries({"status": st.sampled_from(["finished", "failed"])}, optional=dict.fromkeys([*WHOLE][1:], JSON)))
def test_whatever_stands_in_it_runs_can_be_compared(tmp_path_factory, result):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "0").mkdir()
    (folder / "0" / "result.json").write_text(json.dumps(result))
    runs = load_runs(folder)
    assert len(runs) == 1
    rows = read_rows(folder, ["seed"])
    failures(rows), table(rows, ["seed"], 80)
    write_csv(folder / "sweep.csv", rows, ["seed"])
    code_version(rows[0].result)
