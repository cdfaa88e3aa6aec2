"""What frozen layers make of each example, computed once: the same run, a file that is what it says, or none and why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import VARIANTS

from gpt2x.config.compose import to_yaml
from gpt2x.training import frozen
from gpt2x.training.checkpoint import Checkpoints
from gpt2x.training.config import FullConfig, HeadConfig, LastBlockConfig, LoRAConfig
from gpt2x.training.run import train

LOSSES = ("train/loss", "val/loss", "test/loss")
TUNED = {  # a kind of run, the settings that go with it, and what of the model it trains
    "classifier": ("classifier", {}),
    "classifier, mean": ("classifier", {"task": {"pooling": "mean"}}),
    "classifier, padded_last": ("classifier", {"task": {"pooling": "padded_last"}, "model.context_length": 48}),
    "instruct": ("instruct", {}),
    "instruct, packing": ("instruct", {"task": {"packing": True}, "model.context_length": 128}),
}


def losses(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("step", *LOSSES) if key in row} for row in rows]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return Checkpoints(run_dir / "checkpoints").select("last").tensors("model")


def assert_same_run(a: Path, b: Path) -> None:
    """Losses to the four digits that are printed (sums in another order, over padding of another width), and weights, but
    for the biases of keys: they add the same to all scores of a query, so their gradient is the rounding error of zero,
    which AdamW takes for a direction."""
    assert len(losses(a)) > 10
    for mine, other in zip(losses(a), losses(b), strict=True):
        assert mine == pytest.approx(other, rel=0, abs=5e-5)
    theirs = weights(b)
    for name, weight in weights(a).items():
        if name.endswith("c_attn.bias"):
            weight.chunk(3)[1].copy_(theirs[name].chunk(3)[1])
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=0, msg=name)


def files(config) -> list[Path]:
    return sorted((Path(config.paths.cache) / "frozen").glob("*"))


def said(capsys) -> str:
    """What the log says of frozen states, and no more."""
    return "\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("frozen   "))


# -- the same run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TUNED)
def test_a_run_is_the_same_with_its_states_in_memory_on_disk_and_without(fine_tuning, tmp_path, capsys, kind):
    kind, settings = TUNED[kind]
    for keep in ("memory", "disk", "off"):
        settings = settings | {"trainer.frozen_cache": keep, "optimizer.lr": 4e-3}
        train(fine_tuning(kind, finetune=LastBlockConfig(), **settings), tmp_path / keep)
        lines = said(capsys)
        assert ("states of the 2 lower blocks are computed once and kept" in lines) == (keep != "off")
    assert_same_run(tmp_path / "memory", tmp_path / "off")
    assert_same_run(tmp_path / "disk", tmp_path / "off")
    validation = [row["val/loss"] for row in losses(tmp_path / "off") if "val/loss" in row]
    assert validation[-1] < validation[0] - 0.05  # something was learned, so the rows say something


@pytest.mark.parametrize(
    "finetune", [HeadConfig(), LastBlockConfig(blocks=2), LoRAConfig(targets=["h.2.attn.c_attn"])], ids=str
)
@pytest.mark.parametrize("attention", ["sdpa", "manual"])
def test_it_is_also_with_other_parts_trained(fine_tuning, tmp_path, capsys, finetune, attention):
    for keep in ("auto", "off"):
        settings = {"trainer.frozen_cache": keep, "model.attention": attention}
        train(fine_tuning("classifier", finetune=finetune, **settings), tmp_path / keep)
        assert bool(said(capsys)) == (keep == "auto")
    assert_same_run(tmp_path / "auto", tmp_path / "off")


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_it_is_also_with_other_positions(fine_tuning, tmp_path, capsys, position):
    kind, settings = TUNED["instruct, packing"]
    settings = settings | {"model.position": position, "trainer.max_steps": 20}
    for keep in ("memory", "off"):
        train(fine_tuning(kind, finetune=LastBlockConfig(), **settings | {"trainer.frozen_cache": keep}), tmp_path / keep)
        assert bool("are computed once" in said(capsys)) == (keep == "memory")
    assert_same_run(tmp_path / "memory", tmp_path / "off")


@pytest.mark.parametrize("name", ["all", "others"])
def test_it_is_also_with_blocks_that_look_back_at_the_embeddings(fine_tuning, tmp_path, capsys, name):
    kind, settings = TUNED["instruct, packing"]
    variant = {f"model.{option}": value for option, value in VARIANTS[name].items()} | {"model.n_kv_head": 1}
    settings = settings | variant | {"trainer.max_steps": 20}
    for keep in ("memory", "off"):
        train(fine_tuning(kind, finetune=LastBlockConfig(), **settings | {"trainer.frozen_cache": keep}), tmp_path / keep)
        assert bool("are computed once" in said(capsys)) == (keep == "memory")
    assert_same_run(tmp_path / "memory", tmp_path / "off")


def test_an_average_micro_batches_and_an_evaluation_of_training_rows_go_with_it(fine_tuning, tmp_path):
    more = {"trainer.ema_decay": 0.9, "trainer.accumulate": 3, "trainer.eval_train_windows": 20}
    for keep in ("memory", "off"):
        settings = more | {"trainer.frozen_cache": keep, "data": {"eval_batch_size": 5, "drop_last": True}}
        train(fine_tuning("classifier", finetune=LastBlockConfig(), **settings), tmp_path / keep)
    assert_same_run(tmp_path / "memory", tmp_path / "off")


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize("kind", ["classifier", "instruct, packing"])
def test_a_resumed_run_has_the_bits_of_one_never_stopped(fine_tuning, tmp_path, kind, keep):
    (kind, settings), run = TUNED[kind], tmp_path / "run"
    settings = settings | {"trainer.frozen_cache": keep, "trainer.keep_last": 9, "finetune": LastBlockConfig()}
    train(fine_tuning(kind, **settings), run)
    expected, rows = weights(run), losses(run)
    for step in (40, 60):
        for file in (run / "checkpoints" / f"step-{step:08d}").iterdir():
            file.unlink()
        (run / "checkpoints" / f"step-{step:08d}").rmdir()
    train(fine_tuning(kind, resume=str(run), **settings), run)
    assert losses(run) == rows
    resumed = weights(run)
    assert all(torch.equal(weight, resumed[name]) for name, weight in expected.items())


# -- the file ---------------------------------------------------------------------------------------------------


def test_a_later_run_finds_the_file_and_one_with_other_weights_data_tokens_or_blocks_does_not(fine_tuning, tmp_path, capsys):
    def run(name: str, **changes) -> str:
        settings = {"trainer.frozen_cache": "disk", "finetune": LastBlockConfig(), "trainer.max_steps": 30} | changes
        config = fine_tuning("classifier", **settings)
        train(config, tmp_path / name)
        return said(capsys)

    assert "found in" not in run("first")
    (file,) = files(fine_tuning("classifier"))
    whole = file.read_bytes()
    assert f"found in {file}" in run("again", **{"optimizer.lr": 1e-3, "task": {"pooling": "mean"}})
    changes = {
        "weights": {"seed": 2},
        "data": {"data": {"split_seed": 7}},
        "tokens": {"tokenizer.vocab_size": 310},
        "blocks": {"finetune": LastBlockConfig(blocks=2)},
        "heads": {"model.n_head": 4},
        "grouping": {"data": {"eval_batch_size": 5}},  # other sums of matrix products: other bits
        "attention": {"model.attention": "manual"},
        "rope": {"model.position": "rope"},
        "no positions": {"model.position": "none"},  # with the same weights as rope
        "qk_norm": {"model.qk_norm": True},  # with those of the first
    }
    for number, (name, change) in enumerate(changes.items(), 2):
        assert "found in" not in run(name, **change), name
        assert len(files(fine_tuning("classifier"))) == number, name
    assert file.read_bytes() == whole  # nobody wrote to it
    assert "found in" in run("with the file")
    assert losses(tmp_path / "with the file") == losses(tmp_path / "first")
    for how, damaged in {"torn": whole[:-4], "changed": bytes(100) + whole[100:]}.items():
        file.write_bytes(damaged)
        assert "found in" not in run(how)
        assert file.read_bytes() == whole
        assert losses(tmp_path / how) == losses(tmp_path / "first")


def test_a_killed_computation_leaves_nothing_that_is_taken_for_whole(fine_tuning, tmp_path, capsys):
    config = fine_tuning("classifier", finetune=LastBlockConfig(), **{"trainer.frozen_cache": "disk"})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    program = f"""
import os, signal
from pathlib import Path
from gpt2x.config.compose import from_yaml
from gpt2x.config.schema import TrainConfig
from gpt2x.model.gpt import GPT
from gpt2x.training.run import train

below, calls = GPT.below, []

def killed(*args):
    calls.append(args)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return below(*args)

GPT.below = killed
train(from_yaml({str(tmp_path / "config.yaml")!r}, TrainConfig), Path({str(tmp_path / "killed")!r}))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == -9
    (partial,) = files(config)
    assert partial.suffix != ".bin"
    train(config, tmp_path / "run")
    assert "found in" not in said(capsys)
    assert len([path for path in files(config) if path.suffix == ".bin"]) == 1
    config = fine_tuning("classifier", finetune=LastBlockConfig(), **{"trainer.frozen_cache": "off"})
    train(config, tmp_path / "off")
    assert_same_run(tmp_path / "run", tmp_path / "off")


def test_a_computation_that_fails_leaves_no_file_at_all(fine_tuning, tmp_path, monkeypatch):
    def failing(*args):
        raise RuntimeError("no memory")

    config = fine_tuning("classifier", finetune=LastBlockConfig(), **{"trainer.frozen_cache": "disk"})
    monkeypatch.setattr("gpt2x.model.gpt.GPT.below", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        train(config, tmp_path / "run")
    assert files(config) == []


# -- whether, and why not ----------------------------------------------------------------------------------------


def test_it_is_chosen_by_itself_and_says_what_it_takes(fine_tuning, tmp_path, capsys, monkeypatch):
    config = fine_tuning("classifier", finetune=LastBlockConfig(), **{"trainer.max_steps": 30})
    train(config, tmp_path / "memory")
    assert "computed once and kept in memory" in said(capsys)
    assert files(config) == []
    monkeypatch.setattr(frozen.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    train(config, tmp_path / "disk")
    assert f"kept in {Path(config.paths.cache) / 'frozen'}" in said(capsys)
    assert len(files(config)) == 1


WHY_NOT = {
    "more than trainer.frozen_cache_gb=1e-06": {"trainer.frozen_cache_gb": 1e-6, "trainer.frozen_cache": "disk"},
    "model.dropout=0.1 makes them random": {"model.dropout": 0.1},
    "no example comes twice": {"trainer.max_steps": 3},
}


@pytest.mark.parametrize("reason", WHY_NOT)
def test_where_there_is_none_the_log_says_why(fine_tuning, tmp_path, capsys, reason):
    config = fine_tuning("classifier", finetune=LastBlockConfig(), **{"trainer.max_steps": 30} | WHY_NOT[reason])
    train(config, tmp_path / "run")
    line = said(capsys)
    assert line.startswith("frozen   the states of the 2 lower blocks are computed anew each time: ")
    assert reason in line
    assert files(config) == []


def test_a_disk_that_is_too_full_is_left_alone(fine_tuning, tmp_path, capsys, monkeypatch):
    config = fine_tuning("classifier", finetune=LastBlockConfig(), **{"trainer.frozen_cache": "disk"})
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    train(config, tmp_path / "run")
    assert f"more than is free in {Path(config.paths.cache) / 'frozen'}" in said(capsys)
    assert files(config) == []


def test_text_in_windows_that_move_has_none_and_the_log_says_so(small_run, tmp_path, capsys):
    config = small_run(**{"model.dropout": 0.0})
    config.finetune = LastBlockConfig()
    train(config, tmp_path / "run")
    assert "text is read in windows that are never the same twice" in said(capsys)


@pytest.mark.parametrize("finetune", [FullConfig(), LastBlockConfig(blocks=3), LoRAConfig()], ids=lambda f: type(f).__name__)
def test_nothing_is_kept_where_the_lowest_block_is_trained(fine_tuning, tmp_path, capsys, finetune):
    config = fine_tuning("classifier", finetune=finetune, **{"trainer.max_steps": 30, "trainer.frozen_cache": "disk"})
    train(config, tmp_path / "run")
    assert said(capsys) == ""
    assert files(config) == []
