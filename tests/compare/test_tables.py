"""Tables of what differs, choosing runs by their settings, and what a terminal shows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from compare.synthetic import runs as synthetic_runs

from gpt2x.compare.runs import cell
from gpt2x.compare.statistics import groups
from gpt2x.compare.tables import existing, fitting, group_table, matching, render, run_table, short_keys, shown
from gpt2x.config.option import ConfigError


@pytest.fixture
def runs():
    return synthetic_runs(settings=4, seeds=3)


def test_keys_are_as_short_as_they_can_be():
    columns = ["config.optimizer.lr", "config.model.name", "config.data.name", "config.seed"]
    assert list(short_keys(columns).values()) == ["lr", "model.name", "data.name", "seed"]


def test_only_what_differs_is_a_column_and_the_best_run_is_first(runs):
    table = run_table(runs, "val/loss")
    assert list(table.columns) == ["status", "val/loss", "at step", "steps", "time", "seed", "lr", "n_embd"]
    assert table["val/loss"].is_monotonic_increasing
    assert table.index[0] == runs.table["metric"].idxmin()
    one = run_table(runs.select(["0", "1"]), "val/loss")
    assert list(one.columns)[-1:] == ["seed"]
    assert shown(one.assign(time=[61.2, 3700.0]))["time"].tolist() == ["1:01", "1:01:40"]


def test_where_more_is_better_the_most_is_first():
    runs = synthetic_runs(settings=2, seeds=2, **{"val/accuracy": 0.5})
    assert run_table(runs, "val/accuracy")["val/accuracy"].is_monotonic_decreasing
    assert groups(runs, "val/accuracy")[0].mean == max(group.mean for group in groups(runs, "val/accuracy"))


def test_groups_have_a_mean_an_error_and_a_verdict_against_the_baseline(runs):
    found = groups(runs, "val/loss")
    table = group_table(found, "val/loss", found[1])
    assert list(table["verdict"])[1] == "the baseline"
    assert table.loc[0, "difference"] == pytest.approx(found[0].mean - found[1].mean)
    assert table["n"].tolist() == [3, 3, 3, 3]
    text = shown(table)
    assert "standard error" not in text
    assert " ± " in text.loc[0, "val/loss"]


@pytest.mark.parametrize(("where", "expected"), [
    ({"seed": 2}, ["1", "4", "7", "10"]),
    ({"config": "x"}, None),
    ({"lr": 1e-4, "model.n_embd": 128}, ["3", "4", "5"]),
    ({"lr": "1e-4"}, None),
    ({"n_embd": [64, 128], "seed": [1, 9]}, ["0", "3", "6", "9"]),
    ({"run": "7"}, ["7"]),
    ({"status": "failed"}, []),
])  # fmt: skip
def test_runs_are_chosen_by_their_settings(runs, where, expected):
    if "config" in where:
        with pytest.raises(ConfigError, match="none of these runs has a setting config"):
            matching(runs, where, "where")
        return
    found = matching(runs, where, "where")
    assert found == (expected if expected is not None else [])


@pytest.mark.parametrize(("wanted", "expected"), [
    ([0.9, 0.95], ["0", "2"]), ([[0.9, 0.95], [0.8, 0.9]], ["0", "1", "2"]), ([0.95, 0.9], []), ([0.9], []), (0.9, []),
    ([[0.8, 0.9]], ["1"]), ("[0.8,0.9]", ["1"]),
])  # fmt: skip
def test_a_setting_may_be_a_list(wanted, expected):
    runs = synthetic_runs(settings=1, seeds=3)
    runs.table["config.optimizer.betas"] = [cell(betas) for betas in ([0.9, 0.95], [0.8, 0.9], [0.9, 0.95])]
    assert matching(runs, {"betas": wanted}, "where") == expected


def test_a_setting_that_is_none_is_told_with_the_one_that_was_meant(runs):
    with pytest.raises(ConfigError, match=r"no.* a setting learning.n_embed; did you mean model.n_embd"):
        matching(runs, {"learning.n_embed": 1}, "where")
    runs.table["config.data.lr"] = 1
    with pytest.raises(ConfigError, match=r"lr may be any of optimizer.lr, data.lr"):
        matching(runs, {"lr": 1}, "where")


def test_what_a_group_is_made_of_is_told_once_by_its_name_or_the_last_word(runs):
    half = np.arange(len(runs)) % 2 < 1
    runs.table["config.tokenizer._target_"] = np.where(half, "gpt2x.tokenizer.BPE.from_corpus", "gpt2x.tokenizer.Char")
    runs.table["config.tokenizer.vocab_size"] = pd.Series(np.where(half, 300, None), index=runs.table.index, dtype=object)
    runs.table["config.data._target_"] = np.where(half, "gpt2x.data.text.TextData", "gpt2x.data.table.TableData")
    runs.table["config.data.name"] = [["a", "b", "c"][i % 3] for i in range(len(runs))]
    table = run_table(runs, "val/loss")
    assert {*table.columns[5:]} == {"seed", "n_embd", "lr", "tokenizer", "name"}
    assert set(table["tokenizer"]) == {"BPE.from_corpus", "Char"}
    assert runs.apart().startswith("The runs differ in their data and tokenizer: ")


def test_the_values_that_exist_are_told_in_order(runs):
    runs.table["config.data.path"] = pd.Series([None, "b", "a"] * 4, index=runs.table.index, dtype=object)
    assert existing(runs, ["config.optimizer.lr", "config.data.path"]) == "lr: 0.0001, 0.01; path: a, b, null"
    assert existing(runs, ["run"]) == "run: 0, 1, 10, 11, 2, 3, 4, 5, ..."


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_table_fits_the_terminal_in_one_block_the_most_varied_settings_first(runs, width):
    runs.table.index = ["a/very/long/folder/name/of/a/run/" * 3 + name for name in runs.table.index]
    runs.metrics["run"] = runs.metrics["run"].cat.rename_categories(list(runs.table.index))
    for i in range(40):
        runs.table[f"config.model.setting_{i}"] = np.random.default_rng(i).integers(0, 3, len(runs))
    frame = shown(run_table(runs, "val/loss"))
    part = fitting(frame, width, list(frame.columns[:5]))
    assert list(part.columns)[:5] == ["status", "val/loss", "at step", "steps", "time"]
    assert ("seed" in part, len(part.columns) < len(frame.columns)) == (True, True)
    lines = render(part, width).splitlines()
    assert len(lines) == len(frame) + 1
    assert width - 14 < max(map(len, lines)) <= width
    for name, line in zip(frame.index, lines[1:], strict=True):
        start, *cells = line.split()
        assert start.startswith("...") and name.endswith(start[3:])
        assert cells == list(part.loc[name])
