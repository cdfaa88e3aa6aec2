"""The training loop: what it promises, held against independent computations and real files."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from gpt2x.config.compose import from_yaml
from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import TrainConfig
from gpt2x.errors import UserError
from gpt2x.tokenizer.config import CharTokenizerConfig
from gpt2x.tracking.tracker import read_metrics
from gpt2x.training.checkpoint import Checkpoints
from gpt2x.training.config import SGDConfig
from gpt2x.training.run import train
from gpt2x.training.streams import RandomStreams
from gpt2x.training.trainer import NonFiniteError


def losses(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run_dir) if "train/loss" in row]


def final_weights(run_dir: Path) -> bytes:
    folder = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    return (folder / "model.safetensors").read_bytes()


def test_the_same_config_gives_the_same_bits_twice(small_run, tmp_path):
    train(small_run(), tmp_path / "a")
    train(small_run(), tmp_path / "b")
    assert final_weights(tmp_path / "a") == final_weights(tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_another_seed_gives_other_weights(small_run, tmp_path):
    train(small_run(), tmp_path / "a")
    train(small_run(seed=2), tmp_path / "b")
    assert final_weights(tmp_path / "a") != final_weights(tmp_path / "b")


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer.eval_every": 1},
        {"trainer.eval_every": 12},
        {"sample_prompt": None},
        {"trainer.eval_train_windows": 3},
        {"data.eval_batch_size": 1},
        {"trainer.checkpoint_every": 3, "trainer.keep_last": 1},
        {"sampling.max_new_tokens": 1},
    ],
    ids=str,
)
def test_looking_at_a_run_does_not_change_it(small_run, tmp_path, changes):
    train(small_run(), tmp_path / "a")
    train(small_run(**changes), tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert final_weights(tmp_path / "a") == final_weights(tmp_path / "b")


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_validation_loss_does_not_depend_on_the_batch_size(small_run, tmp_path, size):
    reference = train(small_run(**{"trainer.max_steps": 4}), tmp_path / "a")
    result = train(small_run(**{"trainer.max_steps": 4, "data.eval_batch_size": size}), tmp_path / "b")
    assert result.metric == pytest.approx(reference.metric, abs=1e-6)


def test_accumulated_micro_batches_equal_one_large_batch(small_run, tmp_path):
    # The same windows in the same order; sums in another order differ by float32 rounding, amplified over the steps.
    quiet = {"model.dropout": 0.0, "trainer.max_steps": 6}
    train(small_run(**quiet, **{"data.batch_size": 8}), tmp_path / "a")
    train(small_run(**quiet, **{"data.batch_size": 2, "trainer.accumulate": 4}), tmp_path / "b")
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=1e-5)


def test_the_loop_takes_the_steps_that_plain_torch_takes(small_run, tmp_path):
    """Written out with torch alone: loss, clipping, AdamW with two groups, warm-up and cosine."""
    config = small_run(**{"model.dropout": 0.0, "trainer.clip_norm": 0.5, "trainer.max_steps": 8, "trainer.eval_every": 100})
    train(config, tmp_path / "run")

    streams = RandomStreams(config.seed)
    corpus = instantiate(config.data, cache=tmp_path / "cache", mirror=None)
    tokenizer = instantiate(config.tokenizer, corpus.texts("train"))
    data = corpus.tokenize(tokenizer, context_length=16, seed=streams.number("data"))
    model = instantiate(config.model, vocab_size=tokenizer.vocab_size, generator=streams.generator("init"))
    decay = [p for n, p in model.named_parameters() if "ln_" not in n and "bias" not in n]
    rest = [p for n, p in model.named_parameters() if "ln_" in n or "bias" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95), foreach=False
    )
    expected = []
    for step in range(8):
        progress = (step - 2) / (8 - 2)
        factor = (step + 1) / 3 if step < 2 else 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * factor
        batch = data.train_batch(step)
        logits = model(batch.inputs)
        log_probabilities = logits.log_softmax(-1).gather(-1, batch.targets.unsqueeze(-1))
        loss = -log_probabilities.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        expected.append(loss.item())
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-5)


def test_the_norms_and_biases_do_not_decay_unless_asked(small_run):
    model = instantiate(small_run().model, vocab_size=300)
    optimizer = instantiate(small_run().optimizer, model)
    decayed, rest = optimizer.param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() == 2 for p in decayed["params"])
    assert all(p.dim() == 1 for p in rest["params"])
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    (everything,) = instantiate(small_run(**{"optimizer.decay_all": True}).optimizer, model).param_groups
    assert everything["weight_decay"] == 0.1
    assert len(everything["params"]) == len(list(model.parameters()))


def test_sgd_trains(small_run, tmp_path):
    config = small_run()
    config.optimizer = SGDConfig(lr=0.05)
    train(config, tmp_path / "a")
    assert losses(tmp_path / "a")[-1] < losses(tmp_path / "a")[0]


def test_max_epochs_counts_passes_over_the_windows(small_run, tmp_path):
    result = train(small_run(**{"trainer.max_steps": None, "trainer.max_epochs": 0.5}), tmp_path / "run")
    corpus = instantiate(small_run().data, cache=tmp_path / "cache", mirror=None)
    tokenizer = instantiate(small_run().tokenizer, corpus.texts("train"))
    windows = corpus.tokenize(tokenizer, context_length=16, seed=0).n_windows
    assert result.state.step == math.ceil(0.5 * windows / 4)


def test_early_stopping_ends_after_as_many_worse_evaluations(small_run, tmp_path):
    config = small_run(**{"trainer.patience": 2, "trainer.eval_every": 1, "trainer.max_steps": 50, "optimizer.lr": 5.0})
    result = train(config, tmp_path / "run")
    values = [row["val/loss"] for row in read_metrics(tmp_path / "run")]
    best = values.index(min(values))
    assert result.state.step < 50
    assert len(values) == best + 3
    assert result.metric == min(values)


def test_the_test_split_is_measured_once_at_the_end(small_run, tmp_path):
    train(small_run(**{"data.test_fraction": 0.1}), tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "test/loss" in row] == [12]
    assert rows[-1]["test/loss"] != rows[-1]["val/loss"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["last"]["test/loss"] == rows[-1]["test/loss"]
    config = small_run(**{"data.test_fraction": 0.1, "trainer.patience": 1, "trainer.eval_every": 1, "optimizer.lr": 5.0})
    result = train(config, tmp_path / "early")
    assert [row["step"] for row in read_metrics(tmp_path / "early") if "test/loss" in row] == [result.state.step]


def test_the_best_and_the_newest_checkpoints_are_kept(small_run, tmp_path):
    config = small_run(**{"trainer.eval_every": 1, "trainer.max_steps": 9, "trainer.keep_last": 2, "trainer.keep_every": 4})
    result = train(config, tmp_path / "run")
    assert set(Checkpoints(tmp_path / "run" / "checkpoints").steps()) == {4, 8, 9, result.state.best_step}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_batch_and_checkpoint(small_run, tmp_path, monkeypatch):
    from gpt2x.task.lm import LanguageModeling

    real, calls = LanguageModeling.loss, []

    def break_at_seven(self, model, batch):
        calls.append(batch)
        loss = real(self, model, batch)
        return loss * float("nan") if len(calls) == 7 else loss

    monkeypatch.setattr(LanguageModeling, "loss", break_at_seven)
    with pytest.raises(NonFiniteError) as caught:
        train(small_run(), tmp_path / "run")
    message = str(caught.value)
    assert "step 7" in message
    assert "nan" in message
    assert calls[6].description in message
    assert "step-00000004" in message
    assert "optimizer.lr" in message
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "step 7" in result["error"]
    assert result["steps"] == 6
    assert "NonFiniteError" in (tmp_path / "run" / "run.log").read_text()


def test_an_infinite_gradient_is_caught_without_clipping_and_between_logged_steps(small_run, tmp_path, monkeypatch):
    from gpt2x.task.lm import LanguageModeling

    real, calls = LanguageModeling.loss, []

    def finite_loss_infinite_gradient(self, model, batch):
        calls.append(batch)
        loss = real(self, model, batch)
        if len(calls) == 7:
            parameter = next(iter(model.parameters()))
            loss = loss + torch.sqrt((parameter * 0).abs().sum())
        return loss

    monkeypatch.setattr(LanguageModeling, "loss", finite_loss_infinite_gradient)
    with pytest.raises(NonFiniteError, match="step 7"):
        train(small_run(**{"trainer.clip_norm": None, "trainer.log_every": 1000}), tmp_path / "run")


@pytest.mark.parametrize("stop_in", [2, 4])  # the evaluation of step 4, and the last one, of step 12
def test_a_signal_during_an_evaluation_leaves_one_row_a_step(small_run, tmp_path, monkeypatch, stop_in):
    """The evaluation that was cut short is made again, and its row is the one of an undisturbed run."""
    from gpt2x.task.lm import LanguageModeling

    train(small_run(), tmp_path / "whole")
    real, calls = LanguageModeling.evaluate, []

    def interrupted(self, model, batches, stop):
        calls.append(1)
        if len(calls) == stop_in:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, model, batches, stop)

    monkeypatch.setattr(LanguageModeling, "evaluate", interrupted)
    with pytest.raises(SystemExit) as caught:
        train(small_run(), tmp_path / "run")
    assert caught.value.code == 143
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"
    train(small_run(resume=str(tmp_path / "run")), tmp_path / "run")
    clock = ("seconds", "tokens_per_s")
    rows = [[{k: v for k, v in row.items() if k not in clock} for row in read_metrics(tmp_path / n)] for n in ("whole", "run")]
    assert rows[0] == rows[1]
    assert final_weights(tmp_path / "whole") == final_weights(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metric"]["step"] == 12


def test_a_resume_that_cannot_start_leaves_the_result_and_the_configuration(small_run, tmp_path):
    run = tmp_path / "run"
    train(small_run(), run)
    kept = {name: (run / name).read_bytes() for name in ("result.json", "config.yaml", "overrides.txt", "metrics.jsonl")}
    config = small_run(resume=str(run), **{"trainer.max_steps": 20})
    (tmp_path / "text.txt").write_text("another text " * 2000)
    with pytest.raises(UserError, match="another corpus"):
        train(config, run)
    assert {name: (run / name).read_bytes() for name in kept} == kept


def test_a_run_notes_its_threads_and_says_when_they_change(small_run, tmp_path):
    run = tmp_path / "run"
    train(small_run(**{"device.threads": None}), run)
    noted = from_yaml(run / "config.yaml", TrainConfig).device.threads
    assert noted >= 1
    train(small_run(resume=str(run), **{"device.threads": noted + 1, "trainer.max_steps": 14}), run)
    assert f"{noted + 1} threads now, {noted} before" in (run / "run.log").read_text()


def test_the_default_prompt_works_for_characters_of_a_text_of_one_line(small_run, tmp_path):
    config = small_run()
    (tmp_path / "text.txt").write_text("one long line " * 800)
    config.tokenizer = CharTokenizerConfig()
    assert train(config, tmp_path / "run").state.finished


def test_a_plot_that_fails_does_not_fail_the_run(small_run, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("gpt2x.training.run.plot_loss", broken)
    train(small_run(), tmp_path / "run")
    assert "could not be plotted: no fonts" in (tmp_path / "run" / "run.log").read_text()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


def test_the_average_of_the_weights_is_what_its_definition_says(small_run, tmp_path):
    config = small_run(**{"trainer.ema_decay": 0.9, "trainer.checkpoint_every": 1, "trainer.keep_last": 20})
    train(config, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    streams = RandomStreams(config.seed)
    vocab = json.loads((tmp_path / "run" / "tokenizer.json").read_text())["vocab_size"]
    model = instantiate(config.model, vocab_size=vocab, generator=streams.generator("init"))
    average = {name: p.detach().double() for name, p in model.named_parameters()}
    for n, step in enumerate(range(1, 13)):
        weights = checkpoints.load(step).tensors("model")
        decay = min(0.9, (1 + n) / (10 + n))
        average = {name: decay * average[name] + (1 - decay) * weights[name].double() for name in average}
        for name, value in checkpoints.load(step).tensors("ema").items():
            torch.testing.assert_close(value.double(), average[name], atol=1e-6, rtol=0)


def test_evaluation_with_an_average_leaves_the_trained_weights_alone(small_run, tmp_path):
    train(small_run(), tmp_path / "a")
    train(small_run(**{"trainer.ema_decay": 0.99}), tmp_path / "b")
    assert final_weights(tmp_path / "a") == final_weights(tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_the_folder_of_a_run_holds_what_it_promises(small_run, tmp_path):
    run = tmp_path / "run"
    train(small_run(), run, overrides=["trainer.max_steps=12"])
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(13))
    assert {"step", "tokens", "seconds", "train/loss", "val/loss", "val/bpb", "lr", "grad_norm", "tokens_per_s"} <= set(rows[4])
    assert rows[4]["tokens"] == 4 * 4 * 16
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["steps"] == 12
    assert result["metric"] == {"name": "val/loss", "value": min(r["val/loss"] for r in rows if "val/loss" in r), "step": 12}
    assert {"config_hash", "versions", "git_commit", "seconds", "tokens", "peak_memory_bytes"} <= set(result)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 4, 8, 12]
    assert (run / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "overrides.txt").read_text() == "trainer.max_steps=12\n"
    assert "val/loss" in (run / "run.log").read_text()
    assert "gpt2x.model.gpt.GPT" in (run / "config.yaml").read_text()
