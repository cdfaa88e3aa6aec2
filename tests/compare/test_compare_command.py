"""gpt2x-compare on real runs, from the command line to what it prints and writes."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpt2x.commands import compare as command
from gpt2x.compare import load_runs
from gpt2x.tracking.sync import Synced

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def compare(outputs, monkeypatch, tmp_path, capsys):
    """Run gpt2x-compare in an empty folder beside `outputs`: `compare("outputs/runs", "rows=3")` gives (code, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    (tmp_path / "outputs").symlink_to(outputs)

    def run(*argv: str):
        code = command([*argv] if any("html" in argument for argument in argv) else [*argv, "html=null"])
        return code, *capsys.readouterr()

    return run


def test_without_arguments_it_tells_of_all_runs(compare, tmp_path):
    code, out, err = compare(f"html={tmp_path / 'page.html'}")
    assert code == 0, err
    assert out.startswith("9 runs in outputs: 6 finished, 1 interrupted, 1 failed, 1 killed\n")
    assert "failed runs/2026-11-24/failed: the training diverged at step" in out
    assert "page   page.html" in out
    assert "<html" in (tmp_path / "page.html").read_text()[:500].lower()


def test_a_sweep_gets_a_table_and_a_paired_verdict(compare, outputs):
    code, out, _ = compare("outputs/sweeps")
    assert code == 0
    table = load_runs(outputs / "sweeps").table["metric"]
    first = next(line for line in out.splitlines() if line.startswith(table.idxmin()))
    assert first.split()[:5] == ["2", "finished", f"{table.min():.4f}", "12", "12"]
    assert first.split()[-2:] == ["3", "0.003"]
    difference = np.array(table[3:]) - np.array(table[:3])
    assert f"worse by {difference.mean():.3f}" in out
    assert "(95 %, n=3, paired)" in out
    assert "the baseline" in out


def test_the_baseline_and_the_runs_are_chosen_by_their_settings(compare):
    code, out, _ = compare("outputs/sweeps", "where={seed: [1, 3], status: finished}", "baseline={lr: 0.001}")
    assert code == 0
    assert out.startswith("4 runs in ")
    assert "better by " in out
    assert "n=2, paired" in out
    assert "part of its lead is luck" not in out


def test_one_seed_each_gives_no_verdict(compare):
    code, out, _ = compare("outputs/sweeps/2026-11-24/10-00-00/0", "outputs/sweeps/2026-11-24/10-00-00/3")
    assert code == 0
    assert "One seed each" in out
    assert "better by" not in out


def test_a_group_that_never_finished_is_left_out_over_seeds(compare):
    _, out, _ = compare("outputs")
    over_seeds = out.split("Over seeds, finished runs alone:")[1].split("mean ±")[0].strip().splitlines()
    assert len(over_seeds) == 1 + 2  # sgd failed
    assert "n=0" not in out


def test_across_tokenizers_no_baseline_is_chosen(compare, outputs, tmp_path):
    sweep = "outputs/sweeps/2026-11-24/10-00-00"
    for job in "01":
        config = shutil.copytree(outputs / "sweeps/2026-11-24/10-00-00" / job, tmp_path / "other" / job) / "config.yaml"
        config.write_text(config.read_text().replace("vocab_size: 300", "vocab_size: 301"))
    code, out, _ = compare(f"{sweep}/0", f"{sweep}/1", "other")
    assert (code, "The runs differ in their tokenizer: losses of different" in out) == (0, True)
    assert "Over seeds" in out
    assert "baseline" not in out
    _, out, _ = compare(f"{sweep}/0", f"{sweep}/1", "other", "baseline={vocab_size: 301}")
    assert "no difference shown" in out


def test_another_metric_ranks_the_runs(compare, outputs):
    code, out, _ = compare("outputs/sweeps", "metric=last.val/bpb", "rows=1")
    assert code == 0
    assert load_runs(outputs / "sweeps").table["last.val/bpb"].idxmin() == out.splitlines()[3].split()[0]
    assert "... and 5 more: rows=6 shows all" in out


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize("picture", ["png", "svg"])
def test_tables_and_the_picture_are_written_and_read_back(compare, outputs, tmp_path, format, picture):
    options = ("x=tokens", "smoothing=0.5", "log_x=true", "log_y=true", "metric=train/loss")
    code, _, _ = compare("outputs/sweeps", "output=made", f"format={format}", f"picture={picture}", *options)
    assert code == 0
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names == {f"{n}.{format}" for n in ("runs", "groups", "metrics", "samples")} | {f"train_loss.{picture}"}
    read = pd.read_csv if format == "csv" else pd.read_parquet
    runs = load_runs(outputs / "sweeps")
    np.testing.assert_allclose(read(tmp_path / "made" / f"runs.{format}")["metric"], runs.table["metric"])
    made = read(tmp_path / "made" / f"metrics.{format}")
    np.testing.assert_allclose(made["train/loss"], runs.metrics["train/loss"])
    assert read(tmp_path / "made" / f"groups.{format}")["n"].tolist() == [3, 3]
    content = (tmp_path / "made" / f"train_loss.{picture}").read_bytes()
    assert content.startswith(b"\x89PNG" if picture == "png" else b"<?xml")
    assert len(content) > 5000


def test_a_curve_is_kept_and_tells_healthy_runs_from_odd_ones(compare, outputs, tmp_path):
    sweep = "outputs/sweeps/2026-11-24/10-00-00"
    code, out, _ = compare(f"{sweep}/0", f"{sweep}/1", f"{sweep}/2", "save_curve=tiny", "curves=mine")
    assert (code, (tmp_path / "mine" / "tiny.json").exists()) == (0, True)
    assert "curve  mine/tiny.json" in out
    code, out, _ = compare("outputs/runs/2026-11-24/interrupted", "curves=mine", "output=made")
    assert "curve  interrupted: as expected of tiny (n=3): inside the 95 % band" in out
    shutil.copytree(outputs / "runs/2026-11-24/interrupted", tmp_path / "odd")
    rows = [json.loads(line) for line in (tmp_path / "odd" / "metrics.jsonl").read_text().splitlines()]
    worse = [row | ({"val/loss": row["val/loss"] + 3} if row.get("val/loss") and row["step"] == 12 else {}) for row in rows]
    (tmp_path / "odd" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in worse))
    code, out, _ = compare("odd", "curves=mine")
    assert "curve  odd: not as expected of tiny (n=3): at 1 of 4 steps it is above the 95 % band, first at step 12" in out
    code, out, _ = compare(f"{sweep}/3", "curves=mine")  # another recipe
    assert "curve" not in out


def test_a_run_without_a_readable_configuration_or_seed_is_shown_all_the_same(compare, outputs, tmp_path):
    run = shutil.copytree(outputs / "sweeps/2026-11-24/10-00-00/0", tmp_path / "run")
    whole = (run / "config.yaml").read_text()
    (tmp_path / "bare").mkdir()
    shutil.copy(run / "result.json", tmp_path / "bare")
    (run / "config.yaml").write_text(whole[:100] + "\n: [")
    for folder in ("run", "bare"):
        code, out, err = compare(folder, f"html={tmp_path / 'page.html'}")
        assert (code, out.startswith("1 run in .: 1 finished")) == (0, True), err
    (run / "config.yaml").write_text(whole.replace("\nseed: 1\n", "\nseed: abc\n"))
    code, out, err = compare("run", "outputs/sweeps", f"html={tmp_path / 'page.html'}")
    assert (code, "(95 %, n=3, paired)" in out) == (0, True), err


def test_a_run_that_failed_without_a_word_is_listed(compare, outputs, tmp_path):
    shutil.copytree(outputs / "runs/2026-11-24/failed", tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for more in ({"error": ""}, {"error": "\n"}, {"metric": 3, "overrides": [1]}):
        (tmp_path / "run" / "result.json").write_text(json.dumps(result | more))
        code, out, err = compare("run", f"html={tmp_path / 'page.html'}")
        assert (code, "failed run: " in out) == (0, True), err


def test_curves_of_one_s_own_lie_in_the_outputs_and_are_told_in_a_line(compare, outputs, tmp_path):
    sweep, paths = "outputs/sweeps/2026-11-24/10-00-00", "paths.outputs=own"
    code, out, _ = compare(f"{sweep}/0", f"{sweep}/1", f"{sweep}/2", "save_curve=tiny", paths)
    assert (code, (tmp_path / "own/curves/tiny.json").exists()) == (0, True)
    shutil.copytree(outputs / "runs/2026-11-24/interrupted", tmp_path / "odd")
    rows = [json.loads(line) for line in (tmp_path / "odd" / "metrics.jsonl").read_text().splitlines()]
    (tmp_path / "odd" / "metrics.jsonl").write_text(
        "".join(json.dumps(row | {"val/loss": row["val/loss"] + 3} if "val/loss" in row else row) + "\n" for row in rows)
    )
    code, out, _ = compare(sweep, "odd", paths)
    lines = [line for line in out.splitlines() if line.startswith("curve")]
    assert lines[0] == "curve  tiny (n=3): 3 of 4 runs are as expected, in the 95 % band"
    assert (len(lines), "odd: not as expected of tiny" in lines[1]) == (2, True)


def test_runs_that_were_never_evaluated_are_shown_all_the_same(compare, outputs, tmp_path):
    run = shutil.copytree(outputs / "runs/2026-11-24/killed", tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    code, out, _ = compare("run", f"html={tmp_path / 'page.html'}")
    assert code == 0
    assert "1 run in .: 1 killed" in out
    code, _, err = compare("run", "output=made")
    assert (code, "no run has both val/loss and step to draw" in err) == (1, True)


def test_sync_is_told_which_runs_and_its_failures_are_the_command_s(compare, monkeypatch, outputs):
    asked = {}

    def sync_runs(folders, **settings):
        asked.update(settings, folders=folders)
        return [Synced(folder, "sent" if folder.name != "2" else "failed") for folder in folders]

    monkeypatch.setattr("gpt2x.tracking.sync.sync_runs", sync_runs)
    code, _, err = compare("outputs/sweeps", "sync=true", "project=mine")
    assert (code, asked["project"], asked["entity"]) == (1, "mine", None)
    assert [folder.name for folder in asked["folders"]] == list("012345")
    assert "1 of 6 runs could not be sent to wandb" in err


def test_the_workspace_is_saved_for_the_runs(compare, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "gpt2x.tracking.workspace.save_workspace", lambda folders, **settings: asked.update(settings, n=len(folders)) or "URL"
    )
    code, out, _ = compare("outputs/sweeps", "workspace=true", "entity=us")
    assert (code, asked) == (0, {"project": None, "entity": "us", "n": 6})
    assert "wandb  URL" in out


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["none"], 1, "none: no such folder"),
    (["outputs", "runs=[x]"], 2, "runs=[x]: outputs is given beside it\n  give all in one of the two ways"),
    (["outputs", "metric=val/los"], 2, "none of these runs has logged it; did you mean val/loss?\n  there are: val/loss,"),
    (["outputs", "where={n_leyer: 4}"], 2, "did you mean model.n_layer"),
    (["outputs", "where={seed: 77}"], 2, "none of the 9 runs is like that\n  there are seed: 1, 2, 3, 4"),
    (["outputs/sweeps", "baseline={seed: 1}"], 2, "of the 2 groups of finished runs 2 are like that, and one is wanted"),
    (["outputs/sweeps", "baseline={lr: 1}"], 2, "none are like that, and one is wanted\n  groups differ in lr: 0.001, 0.003\n"),
    (["outputs", "save_curve=a/b"], 2, "must be fit for a file"),
    (["outputs", "save_curve=ab"], 1, "these runs are of 2 recipes"),
    (["outputs", "html=outputs"], 2, "html=outputs: is a folder"),
    (["outputs", "x=epochs"], 2, "x=epochs: expected one of step, tokens, seconds, flops"),
    (["outputs", "smoothing=1"], 2, "smoothing=1: must be at least 0 and below 1"),
    (["outputs", "curves=none"], 2, "curves=none: no such folder\n  save_curve=NAME makes a curve"),
    (["outputs", "rows=0"], 2, "rows=0: must be at least 1"),
    (["outputs", "--bad"], 2, "unknown flag --bad"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(compare, arguments, code, said):
    found, _, err = compare(*arguments)
    assert found == code
    assert said in err


def test_folders_with_odd_names_can_be_given(compare, outputs, tmp_path):
    for name in ("a b", "it's", "x,y", "[z]", "ünï $x"):
        shutil.copytree(outputs / "sweeps/2026-11-24/10-00-00/0", tmp_path / name)
        code, out, err = compare(name)
        assert code == 0, err
        assert out.startswith("1 run in .: 1 finished")
        assert name in out


def test_folders_with_an_equals_sign_can_be_given(compare, outputs, tmp_path):
    for name in ("lr=0.1,seed=2", "a,b [c] {d}=1", "rows=3"):
        shutil.copytree(outputs / "sweeps/2026-11-24/10-00-00/0", tmp_path / "x" / name)
        for path in (f"x/{name}", f"./x/{name}", f"{tmp_path}/x/{name}"):
            code, out, err = compare(path, "rows=9")
            assert (code, out.startswith("1 run in x: 1 finished"), name in out) == (0, True, True), err
    (tmp_path / "x" / "lr=0.1,seed=2").rename(tmp_path / "lr=0.1,seed=2")
    (tmp_path / "rows=1").mkdir()  # what is called as a setting is one
    code, out, err = compare("lr=0.1,seed=2", "rows=1", "hydra/launcher=basic")
    assert (code, out.startswith("1 run in .: 1 finished")) == (0, True), err
    code, _, err = compare("lr=0.3,seed=2")  # neither
    assert (code, "lr" in err) == (2, True)
    code, _, err = compare("none/lr=0.3")
    assert (code, "none/lr=0.3: no such folder" in err) == (1, True)


def test_help_fits_a_screen_and_its_examples_compose(capsys):
    assert command(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 70
    assert "usage: gpt2x-compare [RUNS ...] [setting=value ...] [flags]" in lines
    for example in command.examples:
        assert command([*shlex.split(example), "--cfg", "job"]) == 0, example


def test_the_script_answers_help_without_pandas():
    code = "import sys; sys.argv[1:] = ['--help']; import runpy; sys.path.insert(0, '.')\n"
    code += "try: runpy.run_path('scripts/compare.py', run_name='__main__')\n"
    code += "except SystemExit: pass\nsys.exit(any(name in sys.modules for name in ('pandas', 'torch', 'scipy', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60).returncode == 0


def test_groups_that_have_names_of_their_own_are_told_by_them(compare, outputs, tmp_path):
    """Those of a sweep that changes one thing at a time: the name fits where a column for each setting would not."""
    sweep = tmp_path / "named"
    shutil.copytree(outputs / "sweeps" / "2026-11-24" / "10-00-00", sweep)
    named = {"0.003": "plain", "0.001": "lr-1e-3"}
    for config in sweep.glob("*/config.yaml"):
        text = config.read_text()
        (lr,) = (value for value in named if f"lr: {value}" in text)
        config.write_text(text.replace("name: storybook", f"name: {named[lr]}", 1))
    code, out, err = compare(str(sweep), "baseline={name: plain}", "output=tables")
    assert code == 0, err
    head, *rows = out.split("Over seeds, finished runs alone:")[1].strip().splitlines()[:3]
    assert head.split()[:2] == ["name", "lr"]
    assert {row.split()[0]: "the baseline" in row for row in rows} == {"plain": True, "lr-1e-3": False}
    assert set(pd.read_csv(next((tmp_path / "tables").glob("groups*")))["name"]) == {"plain", "lr-1e-3"}
    code, out, _ = compare("outputs/sweeps")
    assert out.split("Over seeds, finished runs alone:")[1].split()[0] == "lr"
