"""The console commands in this process: what is printed, what is run where, and with which exit code."""

from __future__ import annotations

import re
import shlex
from datetime import datetime

import pytest

from gpt2x.commands import evaluate as evaluate_command
from gpt2x.commands import generate as generate_command
from gpt2x.commands import train as train_command
from gpt2x.config.compose import CONFIG_DIR, Composer
from gpt2x.config.multirun import plan
from gpt2x.config.option import ConfigError
from gpt2x.errors import UserError


@pytest.fixture(autouse=True)
def width(monkeypatch):
    """Help fits the terminal, whatever that of the tests is."""
    monkeypatch.setenv("COLUMNS", "100")


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# Running


def test_a_run_gets_its_configuration_and_a_folder_named_after_it(train, fake, tmp_path):
    assert train("model=micro", "+optimizer.eps=1e-7", "seed=3").code == 0
    (run,) = fake.runs
    assert (run.config.model.n_layer, run.config.optimizer.eps, run.config.seed) == (6, 1e-7, 3)
    assert run.overrides == ["model=micro", "optimizer.eps=1e-7", "seed=3"]
    assert run.sweep is None
    assert run.run_dir.is_absolute()
    date, name = run.run_dir.relative_to(tmp_path / "outputs/runs").parts
    datetime.strptime(f"{date} {name}", "%Y-%m-%d %H-%M-%S_storybook")
    assert listing(run.run_dir) == ["config.yaml", "result.json"]  # nothing of Hydra's


def test_two_runs_never_share_a_folder(train, fake, tmp_path):
    for _ in range(2):
        train()
    assert len({run.run_dir for run in fake.runs}) == 2


def test_a_run_folder_of_the_users_choice(train, fake, tmp_path):
    train("hydra.run.dir='here, is'")
    train("paths.outputs=elsewhere", "name=mine")
    assert fake.runs[0].run_dir == tmp_path / "here, is"
    assert fake.runs[1].run_dir.is_relative_to(tmp_path / "elsewhere/runs")
    assert fake.runs[1].run_dir.name.endswith("_mine")


def test_generate_leaves_nothing_behind(generate, fake, tmp_path):
    assert generate("checkpoint=run", "prompt=Hello, world!", "sampling=greedy").code == 0
    (run,) = fake.runs
    assert (run.config.checkpoint, run.config.prompt, run.config.sampling.temperature) == ("run", "Hello, world!", 0.0)
    assert generate("checkpoint=run", "-m", "seed=1,2").code == 0
    assert [run.config.seed for run in fake.runs] == [1, 1, 2]
    assert listing(tmp_path) == []


def test_a_mapping_reaches_a_run_and_a_sweep(generate, fake):
    assert generate("checkpoint=run", 'sampling.logit_bias={" the": -2, id:5: 1}').code == 0
    assert generate("checkpoint=run", "-m", "sampling.logit_bias='{\" a\": -2}','{}',{b:1}").code == 0
    assert generate("checkpoint=run", "sampling.logit_bias.c=3").code == 0
    found = [run.config.sampling.logit_bias for run in fake.runs]
    assert found == [{" the": -2.0, "id:5": 1.0}, {" a": -2.0}, {}, {"b": 1.0}, {"c": 3.0}]
    outcome = generate("checkpoint=run", "-m", "sampling.logit_bias='{a: x}','{}'")
    assert (outcome.code, "sampling.logit_bias={'a': 'x'}: expected a number for 'a', not x" in outcome.err) == (2, True)


# Exit codes


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (UserError("the text is empty"), 1, "gpt2x-train: the text is empty\n"),
        (ConfigError("data.path", "x", "gone"), 2, "gpt2x-train: data.path=x: gone\n"),
        (SystemExit(130), 130, ""),
        (SystemExit(143), 143, ""),
        (KeyboardInterrupt(), 130, "gpt2x-train: interrupted\n"),
    ],
)
def test_failures_that_need_no_traceback(train, fake, error, code, expected):
    fake.raises[1] = error
    outcome = train()
    assert (outcome.code, outcome.err) == (code, expected)


def test_other_failures_have_one(train, fake):
    fake.raises[1] = ZeroDivisionError("division by zero")
    outcome = train()
    assert outcome.code == 1
    assert outcome.err.startswith("Traceback")
    assert outcome.err.endswith("ZeroDivisionError: division by zero\n")
    assert "HYDRA_FULL_ERROR" not in outcome.err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["optimizer.lrr=1"], "gpt2x-train: optimizer.lrr=1: no such setting; did you mean optimizer.lr?"),
        (["+typo=1", "++seed=x"], "gpt2x-train: seed=x: expected a whole number"),
        (["seed=1,2"], "several values need -m"),
        (["--lr=1e-3"], "unknown flag --lr=1e-3\n  settings are given without dashes: lr=1e-3"),
        (["--verbose"], "unknown flag --verbose\n  see gpt2x-train --help"),
        (["--cfg", "everything"], "invalid choice: 'everything'"),
        (["--cfg", "job", "-m"], "not allowed with"),
        (["--resolve"], "--resolve and --package go with --cfg"),
        (["--cfg", "job", "optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["-m", "seed=1,2,x"], "seed=x: expected a whole number"),
        (["-m", "model=nano,nanno"], "model=nanno: no such choice; did you mean model=nano?"),
        (["-m", "trainer.max_steps=10,100", "schedule.warmup_steps=5,50"], "schedule.warmup_steps=50: the warm-up is longer"),
        (["-m", "optimizer.lr=interval(0.1,1)"], "an interval is for a search"),
        (["-m", "seed=range(1,"], "the value cannot be read"),
        (["hydra/launcher=nowhere", "-m", "seed=1,2"], "hydra/launcher=nowhere: no such choice"),
        (["hydra.nonsense=1"], "hydra.nonsense"),
        (["hydra.run.dir=${nonsense}"], "nonsense"),
        (["-cd", "nowhere"], "--config-dir=nowhere: no such folder"),
        (["-cn", "nowhere"], "--config-name=nowhere: no such file"),
        (["-sc", "nonsense"], "--shell-completion"),
        (["resume=nowhere"], "resume=nowhere: no such folder"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_happens(train, fake, tmp_path, argv, expected):
    outcome = train(*argv)
    assert outcome.code == 2
    assert expected in outcome.err
    assert outcome.out == ""
    assert all(trap not in outcome.err for trap in ("Traceback", "use +", "HYDRA_FULL_ERROR"))
    assert fake.runs == []
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["generate", "evaluate"])
def test_what_loads_a_model_needs_a_checkpoint(name, request):
    outcome = request.getfixturevalue(name)()
    assert outcome.code == 2
    what = "the folder of a run, or of a model of OpenAI's or Hugging Face's"
    assert outcome.err == f"gpt2x-{name}: checkpoint must be given: {what}\n"


def test_a_folder_that_cannot_be_created(train, tmp_path):
    (tmp_path / "outputs").write_text("a file")
    outcome = train()
    assert outcome.code == 1
    assert "the folder cannot be created" in outcome.err


def test_what_the_machine_cannot_do_is_said_before_a_folder_appears(train, fake, tmp_path, monkeypatch):
    def refuse(self):
        raise ConfigError("type", self.type, "not here")

    monkeypatch.setattr("gpt2x.device.DeviceConfig.check_available", refuse)
    for argv in ([], ["-m", "seed=1,2"]):
        outcome = train("device.type=cuda", *argv)
        assert (outcome.code, outcome.err) == (2, "gpt2x-train: device.type=cuda: not here\n")
    assert listing(tmp_path) == []
    assert train("device.type=cuda", "--cfg", "job").code == 0  # looking is allowed


# Sweeps


def test_a_sweep_runs_every_combination_in_a_folder_each(train, fake, tmp_path):
    outcome = train("-m", "seed=range(1,3)", "model=nano,micro", "optimizer.lr=0.5")
    assert outcome.code == 0
    assert [(run.config.seed, run.config.model.n_layer) for run in fake.runs] == [(1, 4), (1, 6), (2, 4), (2, 6)]
    sweep = fake.runs[0].run_dir.parent
    assert [run.run_dir for run in fake.runs] == [sweep / str(number) for number in range(4)]
    assert {run.sweep for run in fake.runs} == {sweep.relative_to(tmp_path / "outputs/sweeps").as_posix()}
    assert fake.runs[1].overrides == ["seed=1", "model=micro", "optimizer.lr=0.5"]
    assert "gpt2x-train: 4 runs\ngpt2x-train: run 0: seed=1 model=nano optimizer.lr=0.5\n" in outcome.out


def test_two_sweeps_never_share_a_folder(train, fake):
    for _ in range(2):
        train("-m", "seed=1")
    assert len({run.run_dir for run in fake.runs}) == 2


def test_a_sweep_goes_on_after_a_failed_run(train, fake):
    fake.raises = {1: UserError("no data"), 2: ZeroDivisionError("oh")}
    outcome = train("-m", "seed=1,2,3")
    assert [run.config.seed for run in fake.runs] == [1, 2, 3]
    assert outcome.code == 1
    assert "gpt2x-train: no data\n" in outcome.err
    assert outcome.err.count("Traceback") == 1  # the bug's, not the user's


def test_a_signal_ends_the_whole_sweep(train, fake):
    fake.raises = {2: SystemExit(143)}
    assert train("-m", "seed=1,2,3").code == 143
    assert [run.config.seed for run in fake.runs] == [1, 2]


def test_a_sweep_written_in_a_file(train, fake, tmp_path):
    folder = tmp_path / "mine/experiment"
    folder.mkdir(parents=True)
    header = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
    (folder / "seeds.yaml").write_text(f"{header}      seed: 1,2\n      optimizer.lr: 0.1,0.2\n")
    (folder / "wrong.yaml").write_text(f"{header}      seed: 1,x\n")
    assert train("-cd", "mine", "experiment=seeds", "optimizer.lr=0.3").code == 0
    assert [(run.config.seed, run.config.optimizer.lr) for run in fake.runs] == [(1, 0.3), (2, 0.3)]
    outcome = train("-cd", "mine", "experiment=wrong")
    assert (outcome.code, outcome.err) == (2, "gpt2x-train: seed=x: expected a whole number\n")


def test_a_glob_over_a_group(train, fake):
    assert train("-m", "sampling=glob(*re*,exclude=c*)").code == 0
    assert [run.overrides for run in fake.runs] == [["sampling=greedy"]]


def test_flags_may_stand_anywhere(train, fake):
    assert train("seed=1,2", "-m", "model=nano").code == 0
    assert len(fake.runs) == 2


# Looking


def test_cfg_prints_every_setting_and_writes_nothing(train, tmp_path):
    outcome = train("--cfg", "job", "model=micro")
    assert outcome.code == 0
    assert "name: ${data.name}" in outcome.out
    assert "  log_every: 10\n" in outcome.out
    assert "name: storybook" in train("--cfg", "job", "--resolve").out
    assert train("--cfg", "job", "-p", "optimizer.lr", "optimizer=sgd").out == "0.1\n"
    assert "run:" in train("--cfg", "hydra").out
    assert listing(tmp_path) == []


@pytest.mark.parametrize("command", [train_command, generate_command, evaluate_command])
def test_help_teaches(command, request, tmp_path):
    outcome = request.getfixturevalue(command.config_name)("--help")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) < 70
    for setting in command.shown:
        assert re.search(rf"^  {re.escape(setting)}=\S+ .*\w", outcome.out, re.MULTILINE)
    assert 6 <= len(command.examples) <= 8
    assert "--multirun" in outcome.out
    assert str(CONFIG_DIR / "README.md") in outcome.out
    assert "_target_" not in outcome.out
    assert listing(tmp_path) == []


def test_help_lists_groups_choices_and_defaults(train, tmp_path):
    out = train("-h").out
    assert re.search(r"^  model +gpt2, .*\[nano\]$", out, re.MULTILINE)
    assert re.search(r"^  experiment +(.+\n +)*.*verdict_124m", out, re.MULTILINE)
    assert re.search(r"^  trainer.max_steps=\d+ ", out, re.MULTILINE)
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/own.yaml").write_text("# mine\n")
    assert "nano], own" in train("-cd", "mine", "--help").out


@pytest.mark.parametrize("command", [train_command, generate_command, evaluate_command])
def test_every_example_of_the_help_is_accepted(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    composer = Composer(command.config_name, command.schema)
    for example in command.examples:
        flags = {"--cfg", "job", "-m"}
        words = shlex.split(re.split(r" {2,}", example)[0])
        overrides = composer.read([word for word in words if word not in flags], sweeping="-m" in words)
        planned = plan(composer, overrides, {})
        for values in planned.corners():
            composer.config(composer.read(planned.job(values), sweeping=True))


def test_version(train):
    assert re.fullmatch(r"gpt2x \d+\.\d+\.\d+\S*\n", train("--version").out)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gpt2x-train model=na", "model=nano"),
        ("gpt2x-train trainer.keep_", "trainer.keep_best= trainer.keep_every= trainer.keep_last="),
        ("gpt2x-train model=nano optimizer.e", "optimizer.eps="),
    ],
)
def test_tab_completion(train, monkeypatch, line, expected):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert train("-sc", "query=bash").out.strip() == expected
