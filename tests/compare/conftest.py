"""Real runs, made once: two learning rates with three seeds each, and runs that ended in every other way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gpt2x.config.compose import compose
from gpt2x.config.schema import TrainConfig
from gpt2x.errors import UserError
from gpt2x.training.run import train

TINY = [
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.context_length=16", "model.dropout=0.1"),
    *("tokenizer.vocab_size=300", "data.batch_size=4", "data.val_fraction=0.02", "device.threads=1", "logger=none"),
    *("trainer.max_steps=12", "trainer.eval_every=4", "trainer.log_every=2", "sampling.max_new_tokens=4"),
]


def run(folder: Path, *overrides: str) -> Path:
    """Train a tiny run in `folder`."""
    cache = f"paths.cache={folder.parent / 'cache'}"
    train(compose("train", TrainConfig, [*TINY, cache, *overrides]), folder, overrides=list(overrides))
    return folder


@pytest.fixture(scope="session")
def outputs(tmp_path_factory) -> Path:
    """A folder with a sweep of six jobs and the single runs "failed", "interrupted" and "killed"; not to be changed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("compare") / "outputs"
    sweep = folder / "sweeps" / "2026-11-24" / "10-00-00"
    sweep.mkdir(parents=True)
    (sweep / "sweep.yaml").write_text("{}\n")
    jobs = [(lr, seed) for lr in ("3e-3", "1e-3") for seed in (1, 2, 3)]
    for number, (lr, seed) in enumerate(jobs):
        run(sweep / str(number), f"optimizer.lr={lr}", f"seed={seed}")
    single = folder / "runs" / "2026-11-24"
    with pytest.raises(UserError):  # it diverges
        run(single / "failed", "optimizer=sgd", "optimizer.lr=100", "trainer.clip_norm=null")
    run(single / "interrupted", "seed=4")
    (single / "interrupted" / "result.json").write_text(
        (single / "interrupted" / "result.json").read_text().replace('"finished"', '"interrupted"')
    )
    shutil.copytree(sweep / "1", single / "killed")
    (single / "killed" / "result.json").unlink()
    torch.set_num_threads(threads)
    return folder
