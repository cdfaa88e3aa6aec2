"""gpt2x-train -m, sweep=..., seeds=... and resume=SWEEP, with a stand-in for training."""

from __future__ import annotations

import json
import os
import re

import pytest
import yaml

from gpt2x.config.compose import Composer
from gpt2x.config.job import prepare
from gpt2x.config.multirun import Launcher, plan
from gpt2x.config.schema import TrainConfig
from gpt2x.errors import FolderInUse, UserError
from gpt2x.sweep.config import GridConfig
from gpt2x.sweep.search import Choices, Interval


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def seeds(fake):
    return [run.config.seed for run in fake.runs]


# What makes a sweep, and of what


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["seeds=3"], [(1, 1e-3), (2, 1e-3), (3, 1e-3)]),
        (["seed=7", "seeds=2", "optimizer.lr=1,2"], [(7, 1), (8, 1), (7, 2), (8, 2)]),
        (["sweep=paired", "seed=1,2", "optimizer.lr=0.1,0.2"], [(1, 0.1), (2, 0.2)]),
        (["sweep.params={seed: '5,6', optimizer.lr: '0.5,0.25'}", "optimizer.lr=2"], [(5, 2), (6, 2)]),
        (["-m", "optimizer.lr=choice(1,2)"], [(1, 1), (1, 2)]),
        (["-m"], [(1, 1e-3)]),
    ],
)
def test_what_is_run(train, fake, argv, expected):
    outcome = train("optimizer.weight_decay=0", *argv)
    assert outcome.code == 0, outcome.err
    default = 1e-3
    found = [(run.config.seed, run.config.optimizer.lr) for run in fake.runs]
    lr = Composer("train", TrainConfig).compose([]).optimizer.lr
    assert found == [(seed, lr if value == default else value) for seed, value in expected]


def test_a_job_knows_nothing_of_the_sweep(train, fake, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /sweep: paired\nsweep:\n  params: {seed: '1,2'}\nseeds: null\n"
    (tmp_path / "mine/experiment/two.yaml").write_text(text)
    assert train("-cd", "mine", "experiment=two").code == 0
    assert train("sweep=paired", "sweep.on_error=stop", "seeds=1").code == 0
    assert len(fake.runs) == 3
    for run in fake.runs:
        assert (run.config.sweep, run.config.seeds) == (GridConfig(), None)
        assert not any(re.match("sweep|seeds|hydra", line) for line in run.overrides)


def test_one_thing_at_a_time_and_a_table_that_tells_which(train, fake):
    outcome = train("sweep=one_at_a_time", "model.qk_norm=false,true", "optimizer=adamw,muon", "seeds=2", "hydra.sweep.dir=s")
    assert outcome.code == 0, outcome.err
    found = [(run.config.name, run.config.model.qk_norm, type(run.config.optimizer).__name__) for run in fake.runs[::2]]
    plain = ("plain", False, "AdamWConfig")
    assert found == [plain, ("qk_norm-true", True, "AdamWConfig"), ("optimizer-muon", False, "MuonConfig")]
    assert seeds(fake) == [1, 2] * 3
    head, *rows = outcome.out.partition("\njob ")[2].splitlines()[:7]
    assert head.split()[:3] == ["name", "seed", "status"]
    assert {tuple(row.split()[1:3]) for row in rows} == {(name, seed) for name, *_ in found for seed in "12"}
    assert train("resume=s").code == 0
    assert len(fake.runs) == 6  # they are finished


def test_an_axis_of_each_kind():
    composer = Composer("train", TrainConfig)
    texts = [
        "seed=range(1,4)",
        "model=glob(gpt2-*,exclude=*xl)",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        "model.n_layer=int(interval(1,4))",
        "model.dropout=interval(0,0.5)",
        "name='a,b','c d'",
        "data=text",
        "sweep=grid",
    ]
    planned = plan(composer, composer.read(texts, sweeping=True), {"seed": "9,10", "trainer.max_steps": "5,6"})
    assert planned.space == {
        "seed": Choices(("1", "2", "3")),
        "trainer.max_steps": Choices(("5", "6")),
        "model": Choices(("gpt2-large", "gpt2-medium")),
        "optimizer.lr": Interval(1e-4, 1e-2, log=True),
        "model.n_layer": Interval(1, 4, integer=True),
        "model.dropout": Interval(0.0, 0.5),
        "name": Choices(("'a,b'", "'c d'")),
    }
    assert planned.fixed == {"data": "text"}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-m", "seeds=2", "seed=1,2"], "seeds=2: seed is swept already"),
        (
            ["sweep=optuna_tpe", "seeds=2"],
            "seeds=2: sweep.pruner=median would compare a run with its own repetitions\n  add sweep.p",
        ),
        (["-m", "optimizer.lr=1e-3,1e-3"], "optimizer.lr=0.001 is asked for twice"),
        (
            ["-m", "model=nano,micro", "optimizer.lr=1,2,1.0"],
            "model=nano optimizer.lr=1 and model=nano optimizer.lr=1.0 are",
        ),
        (["sweep=paired", "seed=1,2,1", "optimizer.lr=1,1,1"], "seed=1 optimizer.lr=1 is asked for twice"),
        (["sweep=random", "optimizer.lr=1,2,1"], "optimizer.lr=1 is asked for twice"),
        (["sweep=optuna_tpe", "sweep.objectives=[seconds]"], "sweep.objectives=[seconds]: no evaluation tells it"),
        (["-m", "seeds=1,2"], "seeds=1,2: this cannot be swept"),
        (["-m", "sweep=grid,paired"], "sweep=grid,paired: this cannot be swept"),
        (["-m", "hydra.job.name=a,b"], "hydra.job.name=a,b: this cannot be swept"),
        (["seeds=0"], "seeds=0: must be at least 1"),
        (["sweep.on_error=perhaps"], "sweep.on_error=perhaps: expected one of continue, stop"),
        (["sweep=grit"], "sweep=grit: no such choice; did you mean sweep=grid?"),
        (["sweep=paired", "seed=1,2", "optimizer.lr=1,2,3"], "3 values, and seed has 2"),
        (["-m", "optimizer.lr=interval(1,0.1)"], "its end is below its start"),
        (["-m", "hydra.sweeper._target_=a.Sweeper"], "hydra/sweeper=basic: the sweep loop is gpt2x's own"),
        (["-m", "hydra.sweep.subdir=x"], "a job's folder is its number"),
        (["sweep.params={nonsense: '1,2'}"], "nonsense=1: no such setting"),
    ],
)
def test_what_is_refused_before_anything_happens(train, fake, tmp_path, argv, expected):
    outcome = train(*argv)
    assert (outcome.code, fake.runs, listing(tmp_path)) == (2, [], [])
    assert expected in outcome.err
    assert "Traceback" not in outcome.err


# Going on


@pytest.fixture
def half_done(train, fake, tmp_path):
    """The folder of a sweep over six seeds: one finished, one failed, one interrupted with a checkpoint, one killed before
    its first, one killed after it, one not begun."""
    fake.raises = {2: UserError("no data"), 3: SystemExit(143)}
    assert train("-m", "seed=1,2,3,4,5,6", "optimizer.lr=0.5", "hydra.sweep.dir=s").code == 143
    folder = tmp_path / "s"
    (folder / "1/result.json").write_text('{"status": "failed", "error": "no data"}')
    (folder / "1/run.log").write_text("why it failed")
    (folder / "1/checkpoints/step-00000001").mkdir(parents=True)
    (folder / "2/result.json").write_text('{"status": "interrupted"}')
    config = (folder / "2/config.yaml").read_text()
    for number in (3, 4):
        (folder / f"{number}").mkdir()
        (folder / f"{number}/config.yaml").write_text(config.replace("seed: 3\n", f"seed: {number + 1}\n"))
    for number in (2, 4):
        (folder / f"{number}/checkpoints/step-00000001").mkdir(parents=True)
    (folder / "3/metrics.jsonl").write_text("{}")
    fake.raises, fake.runs = {}, []
    return folder


@pytest.mark.parametrize("argv", [["resume=s"], ["-m", "seed=range(1,7)", "optimizer.lr=5e-1", "hydra.sweep.dir=s"]])
def test_each_job_does_what_its_folder_asks_for(train, fake, half_done, argv):
    finished = contents(half_done / "0")
    outcome = train(*argv)
    assert outcome.code == 0, outcome.err
    assert seeds(fake) == [2, 3, 4, 5, 6]
    assert [run.run_dir.name for run in fake.runs] == ["1", "2", "3", "4", "5"]
    resumed = {run.config.seed for run in fake.runs if run.config.resume is not None}
    assert resumed == {3, 5}
    assert all(run.config.resume in (None, str(run.run_dir)) for run in fake.runs)
    assert all(run.overrides == [] for run in fake.runs if run.config.resume is not None)
    assert (half_done / "1/run.log").read_text() == "why it failed"
    assert not (half_done / "1/checkpoints").exists()
    assert not (half_done / "3/metrics.jsonl").exists()
    assert {name: what for name, what in contents(half_done / "0").items() if name != ".lock"} == finished
    assert "6 runs, 1 of them finished already" in outcome.out
    fake.runs.clear()
    assert train("resume=s").code == 0
    assert fake.runs == []
    assert "6 runs, 6 of them finished already" in train(f"resume={half_done}").out


def test_what_may_change_on_the_way_does(train, fake, half_done):
    outcome = train("resume=s", "logger=none", "device.threads=1", "sampling.top_k=3", "sweep.on_error=stop", "paths.cache=c")
    assert outcome.code == 0, outcome.err
    for run in fake.runs:
        config = run.config
        assert (type(config.logger).__name__, config.device.threads, config.paths.cache) == ("NoLoggerConfig", 1, "c")
        assert (config.sampling.top_k, config.optimizer.lr) == (3, 0.5)
    assert fake.runs[1].overrides == ["logger=none", "device.threads=1", "sampling.top_k=3", "paths.cache=c"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["resume=s", "optimizer.lr=1"], "optimizer.lr=1: the runs of a sweep that goes on keep their settings"),
        (["resume=s", "trainer.max_steps=9999"], "keep their settings"),
        (["resume=s", "seed=1"], "keep their settings"),
        (["resume=s", "logger=none,wandb"], "keep their settings"),
        (["resume=s", "sweep=paired"], "keep their settings"),
        (["resume=s", "-m"], "-m starts a new sweep"),
        (["resume=s", "-cd", "."], "leave it out"),
        (["-m", "seed=1,3,2", "optimizer.lr=0.5", "hydra.sweep.dir=s"], "s/1 holds another run: seed=2, not 3"),
        (["-m", "seed=1,2", "optimizer.lr=0.25", "hydra.sweep.dir=s"], "s/0 holds another run: optimizer.lr=0.5, not 0.25"),
        (["-m", "seed=1,2", "trainer.max_steps=9", "hydra.sweep.dir=s"], "trainer.max_steps=500, not 9"),
    ],
)
def test_another_sweep_is_refused_in_its_folder(train, fake, half_done, argv, expected):
    before = {path: path.read_bytes() for path in half_done.rglob("*") if path.is_file()}
    outcome = train(*argv)
    assert outcome.code == 2
    assert expected in outcome.err
    assert fake.runs == []
    assert {path: path.read_bytes() for path in half_done.rglob("*") if path.is_file()} == before


def test_more_values_may_be_added_at_the_end(train, fake):
    assert train("-m", "seed=1,2", "hydra.sweep.dir=s").code == 0
    assert train("-m", "seed=1,2,3", "hydra.sweep.dir=s").code == 0
    assert seeds(fake) == [1, 2, 3]
    assert train("-m", "device.threads=1,2", "seed=1", "hydra.sweep.dir=t").code == 0
    assert "device.threads=1, not 3" in train("-m", "device.threads=3,2", "seed=1", "hydra.sweep.dir=t").err


def test_a_sweep_with_files_of_ones_own(train, fake, tmp_path):
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/own.yaml").write_text("_target_: gpt2x.model.gpt.GPT\nn_layer: 3\nn_head: 2\nn_embd: 8\n")
    fake.raises = {1: UserError("oh")}
    assert train("-cd", "mine", "-m", "model=own", "seed=1", "hydra.sweep.dir=s").code == 1
    fake.raises = {}
    outcome = train("resume=s")
    assert (outcome.code, "add -cd" in outcome.err) == (2, True)
    assert train("-cd", "mine", "resume=s").code == 0
    assert fake.runs[-1].config.model.n_layer == 3


@pytest.mark.parametrize(
    "change",
    [
        {"overrides": ["hydra.launcher._target_=os.system", "seed=1,2"]},
        {"overrides": ["hydra.launcher.setup=[touch pwned]", "seed=1,2"]},
        {"overrides": ["hydra.callbacks={a:{_target_:os.system}}", "seed=1,2"]},
        {"overrides": ["hydra.searchpath=[file://elsewhere]", "seed=1,2"]},
        {"overrides": "seed=1"},
        {"overrides": [3]},
        {"config_dir": "elsewhere"},
        {"config_name": "elsewhere"},
        {"overrides": ["nonsense=1"]},
    ],
)
def test_a_strangers_sweep_cannot_run_code_of_theirs(train, fake, tmp_path, change):
    assert train("-m", "seed=1,2", "hydra.sweep.dir=s").code == 0
    path = tmp_path / "s/sweep.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    fake.runs.clear()
    outcome = train("resume=s")
    assert (outcome.code, fake.runs) == (2, [])
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "pwned").exists()


def test_a_folder_in_use_is_left_alone(half_done, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr("gpt2x.config.job.LOCK_SECONDS", 0.05)
    with FileLock(half_done / "3/.lock"), pytest.raises(FolderInUse):
        prepare(half_done / "3")
    assert (half_done / "3/metrics.jsonl").exists()
    assert prepare(half_done / "3") == "run"


def test_a_run_that_another_process_has_is_not_a_failure(train, fake, half_done, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr("gpt2x.config.job.LOCK_SECONDS", 0.05)
    with FileLock(half_done / "3/.lock"):
        outcome = train("resume=s")
    assert outcome.code == 0
    assert seeds(fake) == [2, 3, 5, 6]
    assert re.search(r"^ +3 +4 +running", outcome.out, re.MULTILINE)


# Launchers


@pytest.mark.parametrize(("n_jobs", "at_once", "threads"), [(2, 2, 4), (3, 3, 2), (100, 100, 1), (1, 1, 8)])
def test_jobs_side_by_side_share_the_cores(monkeypatch, n_jobs, at_once, threads):
    monkeypatch.setattr("gpt2x.config.multirun.default_threads", lambda: 8)
    composer = Composer("train", TrainConfig)
    overrides = composer.read(["hydra/launcher=joblib", f"hydra.launcher.n_jobs={n_jobs}"], sweeping=True)
    launcher = Launcher(composer.compose(overrides).hydra.launcher, set())
    alone = at_once == 1  # joblib then makes the runs in the sweep's own process
    assert (launcher.at_once, launcher.threads, launcher.own_process) == (at_once, threads, not alone)
    assert (launcher.parent, launcher.shares_console) == (None if alone else os.getpid(), not alone)
    assert launcher.settings == ["hydra.launcher.batch_size=1"]
    basic = Launcher(composer.compose([]).hydra.launcher, set())
    assert (basic.at_once, basic.threads, basic.own_process) == (1, None, False)


@pytest.mark.parametrize(("given", "expected"), [([], 3), (["device.threads=2"], 2), (["device.threads=4"], 4)])
def test_a_job_takes_its_share_unless_told_otherwise(train, fake, monkeypatch, given, expected):
    monkeypatch.setattr(Launcher, "threads", 3)
    outcome = train("-m", "seed=1", "hydra.sweep.dir=s", *given)
    assert outcome.code == 0
    assert fake.runs[0].config.device.threads == expected
    assert ("leave out device.threads, and each gets 3" in outcome.err) == (expected > 3)


# Failures


def test_the_table_and_the_exit_code_after_failures(train, fake, tmp_path):
    fake.raises = {2: UserError("no data"), 3: ZeroDivisionError("oh")}
    outcome = train("-m", "seed=1,2,3,4", "hydra.sweep.dir=s")
    assert outcome.code == 1
    assert seeds(fake) == [1, 2, 3, 4]
    assert re.findall(r"^ +(\d) +(\d) +(\w+)", outcome.out, re.MULTILINE) == [
        ("0", "1", "finished"), ("3", "4", "finished"), ("1", "2", "failed"), ("2", "3", "failed"),
    ]  # fmt: skip
    assert "run 1 failed: no data\nrun 2 failed: oh\n" in outcome.out
    assert "go on    gpt2x-train resume=s\n" in outcome.out
    assert (tmp_path / "s/sweep.csv").read_text().splitlines()[0].startswith("job,seed,status,metric,step,minutes,folder")


def test_no_run_begins_after_a_failure_if_asked(train, fake, tmp_path):
    fake.raises = {2: UserError("no data")}
    outcome = train("-m", "seed=1,2,3", "sweep.on_error=stop", "hydra.sweep.dir=s")
    assert (outcome.code, seeds(fake)) == (1, [1, 2])
    assert "not run" in outcome.out
    fake.raises = {}
    assert train("resume=s").code == 0
    assert seeds(fake) == [1, 2, 2, 3]


def test_the_best_run_is_named(train, fake, monkeypatch, tmp_path):
    assert train("-m", "seed=1,2,3", "hydra.sweep.dir=s").code == 0
    for number, value in enumerate((3.0, 2.0, 4.0)):
        metric = {"name": "val/loss", "value": value, "step": 5}
        (tmp_path / f"s/{number}/result.json").write_text(json.dumps({"status": "finished", "metric": metric}))
    out = train("resume=s").out
    assert "best     s/1\n" in out
    assert "compare  gpt2x-compare s\n" in out


# Searches


def reached(value, status="finished"):
    """The content of a result.json."""
    return {"status": status, "metric": {"name": "val/loss", "value": value, "step": 5}, "last": {"val/loss": value}}


def trials(path):
    import optuna

    return optuna.load_study(storage=f"sqlite:///{path}", study_name="sweep").trials


def test_a_repetition_that_failed_after_an_evaluation_is_made_again(train, fake, tmp_path):
    """Searched with two seeds: the trial is not known before both its runs are finished."""
    fake.result = lambda config: reached(float(config.seed), "failed" if config.seed == 2 else "finished")
    asked = ["sweep=random", "seeds=2", "optimizer.lr=interval(1e-3,1e-2)", "sweep.n_trials=1"]
    assert train(*asked, "hydra.sweep.dir=s").code == 1
    assert [trial.state.name for trial in trials(tmp_path / "s/study.db")] == ["FAIL"]
    fake.result = lambda config: reached(float(config.seed))
    outcome = train("resume=s")
    assert outcome.code == 0, outcome.err
    assert seeds(fake) == [1, 2, 2]
    assert [(trial.state.name, trial.value) for trial in trials(tmp_path / "s/study.db")] == [("FAIL", None), ("COMPLETE", 1.5)]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["sweep=random", "optimizer.lr=interval(1e-4,1e-2)"], "another optimizer.lr"),
        (["sweep=random", "optimizer.lr=interval(1e-3,1e-2)", "model.dropout=0,0.1"], "another model.dropout"),
        (["sweep=random", "optimizer.lr=interval(1e-3,1e-2)", "trainer.max_steps=9"], "another trainer.max_steps"),
        (["sweep=random", "optimizer.lr=interval(1e-3,1e-2)", "seeds=2"], "another seeds"),
        (["sweep=random", "optimizer.lr=interval(1e-3,1e-2)", "sweep.study=b"], "another sweep.study"),
        (["-m", "optimizer.lr=1,2"], "another sweep"),
    ],
)
def test_another_search_in_its_folder_is_refused_and_leaves_it_as_it_was(train, fake, tmp_path, argv, expected):
    asked = ["sweep=random", "optimizer.lr=interval(1e-3,1e-2)", "hydra.sweep.dir=s"]
    fake.result = lambda config: reached(config.optimizer.lr)
    assert train(*asked, "sweep.n_trials=1").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    outcome = train(*argv, "hydra.sweep.dir=s")
    assert outcome.code == 2
    assert expected in outcome.err
    assert "resume=s" in outcome.err
    assert {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()} == before
    assert train("resume=s").code == 0
    assert train(*asked, "sweep.n_trials=2", "logger=none").code == 0
    assert len(fake.runs) == 2


def test_a_search_in_the_folder_of_a_grid_is_refused_before_it_has_a_study(train, fake, tmp_path):
    assert train("-m", "optimizer.lr=1,2", "hydra.sweep.dir=s").code == 0
    before = listing(tmp_path)
    outcome = train("sweep=random", "optimizer.lr=1,2", "hydra.sweep.dir=s")
    assert (outcome.code, listing(tmp_path)) == (2, before)
    assert "s holds another sweep: it was asked for with another sweep" in outcome.err
    assert train("resume=s").code == 0


def test_a_search_that_a_shared_study_refuses_leaves_no_folder(train, fake, tmp_path):
    fake.result = lambda config: reached(config.optimizer.lr)
    shared = ["sweep=random", "sweep.storage=sqlite:///a.db", "sweep.n_trials=1"]
    assert train(*shared, "optimizer.lr=interval(1e-3,1e-2)", "hydra.sweep.dir=s").code == 0
    for folder in ([], ["hydra.sweep.dir=t"]):
        outcome = train(*shared, "optimizer.lr=interval(1e-4,1e-2)", *folder)
        assert outcome.code == 2
        assert "has another space" in outcome.err
        assert not [*tmp_path.glob("outputs/sweeps/*/*"), *tmp_path.glob("t")]


def test_the_best_run_of_a_shared_study_is_named_where_it_is(train, fake, tmp_path):
    shared = ["sweep=random", "sweep.storage=sqlite:///a.db", "optimizer.lr=interval(1e-3,1e-2)"]
    fake.result = lambda config: reached(1.0)
    assert "best     s/0\n" in train(*shared, "sweep.n_trials=1", "hydra.sweep.dir=s").out
    fake.result = lambda config: reached(2.0)
    outcome = train(*shared, "sweep.n_trials=2", "hydra.sweep.dir=t")
    assert (tmp_path / "t/1").is_dir()
    assert "best     s/0\n" in outcome.out
    fake.result = lambda config: reached(float(config.seed))
    asked = ["sweep=random", "seeds=2", "sweep.n_trials=2", "optimizer.lr=interval(1e-3,1e-2)", "hydra.sweep.dir=u"]
    out = train(*asked).out
    assert "best     u/0\nbest     u/1\n" in out
    (tmp_path / "u").rename(tmp_path / "v")
    assert "best     v/0\nbest     v/1\n" in train("resume=v").out


def test_an_objective_that_no_run_has_is_mended_without_losing_the_run(train, fake, tmp_path):
    fake.result = lambda config: reached(config.optimizer.lr)
    asked = ["sweep=random", "optimizer.lr=interval(1e-3,1e-2)", "sweep.n_trials=2", "hydra.sweep.dir=s"]
    assert train(*asked, "sweep.objectives=[val/los]").code == 2
    mended = train("resume=s", "sweep.objectives=[max:val/loss]")
    assert mended.code == 0, mended.err
    runs = {run.run_dir.name: run.config.optimizer.lr for run in fake.runs}
    assert list(runs) == ["0", "1"]
    assert len(fake.runs) == 2
    assert f"best     s/{max(runs, key=runs.get)}\n" in mended.out
    assert train("resume=s").code == 0
    refused = train("resume=s", "sweep.objectives=[val/loss]")
    assert (refused.code, "has another objective" in refused.err) == (2, True)
    assert train("resume=s").code == 0


def test_values_that_are_proposed_again_are_not_run_again(train, fake, tmp_path):
    fake.result = lambda config: reached(config.optimizer.lr)
    asked = ["sweep=random", "sweep.sampler=tpe", "optimizer.lr=1,2", "hydra.sweep.dir=s"]
    outcome = train(*asked, "sweep.n_trials=8")
    assert outcome.code == 0, outcome.err
    assert sorted(run.config.optimizer.lr for run in fake.runs) == [1, 2]
    first = next(run.run_dir.name for run in fake.runs if run.config.optimizer.lr == 1)
    assert outcome.out.count("its result is taken") == 6
    assert f"best     s/{first}\n" in outcome.out
    assert {(trial.state.name, trial.value) for trial in trials(tmp_path / "s/study.db")} == {("COMPLETE", 1), ("COMPLETE", 2)}
    assert len(trials(tmp_path / "s/study.db")) == 8
