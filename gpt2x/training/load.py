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
from gpt2x.model.lora import base_hash, merge
from gpt2x.task.base import Task
from gpt2x.tokenizer import base as tokenizers
from gpt2x.training.checkpoint import Checkpoint, CheckpointError, Checkpoints
from gpt2x.training.config import LoRAConfig, RunInitConfig
from gpt2x.training.streams import RandomStreams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """A run's configuration, tokenizer, task and model (on the CPU, in evaluation mode), and the checkpoint it comes from."""

    config: TrainConfig
    tokenizer: tokenizers.Tokenizer
    task: Task
    model: nn.Module
    checkpoint: Checkpoint


def load_run(path: str | Path, which: str = "best", *, merged: bool = True) -> LoadedRun:
    """Load the "best" or "last" checkpoint of the run in folder `path`, or that of a step.

    Where the run keeps an average of its weights, that is what is loaded: the validation loss is the average's. Of a run
    with finetune=lora the model that it started from is loaded first, and the adapter is added to its weights unless
    `merged` is false.
    Raises UserError where there is no such run or checkpoint, or the tokenizer or the adapter is not the model's.
    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise UserError(f"checkpoint={path}: not the folder of a run (it has no config.yaml); runs lie under outputs/runs")
    config = from_yaml(path / "config.yaml", TrainConfig)
    checkpoint = Checkpoints(path / "checkpoints").select(which)
    tokenizer = tokenizers.load(path / "tokenizer.json")
    checkpoint.require({"tokenizer": tokenizer.fingerprint})
    task = instantiate(config.task, tokenizer, checkpoint.state.get("about", {}))
    weights = checkpoint.tensors("ema" if checkpoint.has("ema") else "model")
    if "base" in checkpoint.state["identity"]:
        config.finetune.adapter = None  # where its training began is of no matter any more
        if isinstance(config.init, RunInitConfig) and not Path(config.init.path, "config.yaml").is_file():
            raise UserError(
                f"{path} holds an adapter alone, for the model of the run {config.init.path}, which is not there\n"
                f"  put that run back, or correct init.path in {path / 'config.yaml'}"
            )
        model = new_model(config, tokenizer, task)
        if base_hash(model) != checkpoint.state["identity"]["base"]:
            base = f"{config.init.path}, step {config.init.which}" if isinstance(config.init, RunInitConfig) else "its seed"
            raise CheckpointError(
                f"{checkpoint.folder} holds an adapter alone, which belongs to other weights than those of {base}"
            )
        parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    else:
        model = task.model(instantiate(config.model, vocab_size=tokenizer.vocab_size))
        parameters = dict(model.named_parameters())
    if parameters.keys() != weights.keys():
        raise CheckpointError(f"{checkpoint.folder} has other weights than the model of {path / 'config.yaml'}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    if merged:
        merge(model)
    return LoadedRun(config, tokenizer, task, model.eval(), checkpoint)


def new_model(config: TrainConfig, tokenizer: tokenizers.Tokenizer, task: Task, *, loaded_next: bool = False) -> nn.Module:
    """The model that a run begins with, before its first step: the same one each time.

    With `loaded_next` a checkpoint's weights follow: then the run it began with is only read where the checkpoint holds
    nothing but an adapter.
    """
    streams = RandomStreams(config.seed)
    gpt = instantiate(config.model, vocab_size=tokenizer.vocab_size, generator=streams.generator("init"))
    if not loaded_next or isinstance(config.finetune, LoRAConfig):
        instantiate(config.init, gpt, tokenizer)
    model = task.model(gpt, streams.generator("head"))
    instantiate(config.finetune, model, generator=streams.generator("adapter"))
    return model
