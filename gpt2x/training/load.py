"""A trained model out of its run's folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gpt2x.config.compose import from_yaml
from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import TrainConfig
from gpt2x.errors import UserError
from gpt2x.tokenizer import base as tokenizers
from gpt2x.training.checkpoint import Checkpoint, CheckpointError, Checkpoints

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """A run's configuration, tokenizer and model (on the CPU, in evaluation mode), and the checkpoint it comes from."""

    config: TrainConfig
    tokenizer: tokenizers.Tokenizer
    model: nn.Module
    checkpoint: Checkpoint


def load_run(path: str | Path, which: str = "best") -> LoadedRun:
    """Load the "best" or "last" checkpoint of the run in folder `path`, or that of a step.

    Where the run keeps an average of its weights, that is what is loaded: the validation loss is the average's.
    Raises UserError where there is no such run or checkpoint, or the tokenizer is not the model's.
    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise UserError(f"checkpoint={path}: not the folder of a run (it has no config.yaml); runs lie under outputs/runs")
    config = from_yaml(path / "config.yaml", TrainConfig)
    checkpoint = Checkpoints(path / "checkpoints").select(which)
    tokenizer = tokenizers.load(path / "tokenizer.json")
    checkpoint.require({"tokenizer": tokenizer.fingerprint})
    model = instantiate(config.model, vocab_size=tokenizer.vocab_size)
    weights = checkpoint.tensors("ema" if checkpoint.has("ema") else "model")
    parameters = dict(model.named_parameters())
    if parameters.keys() != weights.keys():
        raise CheckpointError(f"{checkpoint.folder} has other weights than the model of {path / 'config.yaml'}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    return LoadedRun(config, tokenizer, model.eval(), checkpoint)
