"""A trained model out of its folder: a run's, or that of another program's model."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import TrainConfig
from gpt2x.config.trained import trained
from gpt2x.errors import UserError
from gpt2x.interop import pretrained
from gpt2x.model.classifier import parts
from gpt2x.model.lora import base_hash, merge
from gpt2x.task.base import Task
from gpt2x.tokenizer import base as tokenizers
from gpt2x.training.checkpoint import Checkpoint, CheckpointError, Checkpoints
from gpt2x.training.config import LoRAConfig, ScratchConfig
from gpt2x.training.init import classifier_head, fill, keep_head
from gpt2x.training.streams import RandomStreams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """A run's configuration, tokenizer, task and model (on the CPU, in evaluation mode), and the checkpoint it comes from.

    Of a model that another program wrote, the configuration is what describes it (see config/trained.py): it has no data,
    and there is no checkpoint.
    """

    config: TrainConfig
    tokenizer: tokenizers.Tokenizer
    task: Task
    model: nn.Module
    checkpoint: Checkpoint | None

    @property
    def step(self) -> int | None:
        """The step that it is of, where that is known."""
        return None if self.checkpoint is None else self.checkpoint.step


def load_run(path: str | Path, which: str = "best", *, merged: bool = True) -> LoadedRun:
    """Load the "best" or "last" checkpoint of the run in folder `path`, or that of a step; or the model that another program
    wrote there, OpenAI's or Hugging Face's.

    Where the run keeps an average of its weights, that is what is loaded: the validation loss is the average's. Of a run
    with finetune=lora the model that it started from is loaded first, and the adapter is added to its weights unless
    `merged` is false.
    Raises UserError where there is no such run or checkpoint, or the tokenizer or the adapter is not the model's.
    """
    path = Path(path)
    kind = pretrained.kind_of(path)
    if kind is None:
        raise UserError(f"checkpoint={path}: {pretrained.lacking(*pretrained.KINDS)}; runs lie under outputs/runs")
    if kind != "run":
        return _load_pretrained(path)
    config = trained(path)
    checkpoint = Checkpoints(path / "checkpoints").select(which)
    tokenizer = tokenizers.load(path / "tokenizer.json")
    checkpoint.require({"tokenizer": tokenizer.fingerprint})
    task = instantiate(config.task, tokenizer, checkpoint.state.get("about", {}))
    weights = checkpoint.mapped("ema" if checkpoint.has("ema") else "model")
    if "base" in checkpoint.state["identity"]:
        config.finetune.adapter = None  # where its training began is of no matter any more
        base = getattr(config.init, "path", None)  # None: random weights
        if base is not None and pretrained.kind_of(base) is None:
            raise UserError(
                f"{path} holds an adapter alone, for the model in {base}, which is not there\n"
                f"  put that folder back, or correct init.path in {path / 'config.yaml'}"
            )
        model = new_model(config, tokenizer, task)
        if base_hash(model) != checkpoint.state["identity"]["base"]:
            step = f", step {config.init.which}" if hasattr(config.init, "which") else ""
            raise CheckpointError(
                f"{checkpoint.folder} holds an adapter alone, which belongs to other weights than those of "
                f"{'its seed' if base is None else base}{step}"
            )
        parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    else:
        model = _empty_model(config, tokenizer, task)
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
    begins = not loaded_next or isinstance(config.finetune, LoRAConfig)
    with contextlib.nullcontext() if begins and isinstance(config.init, ScratchConfig) else Undrawn():
        gpt = instantiate(config.model, vocab_size=tokenizer.vocab_size, generator=streams.generator("init"))
    head = instantiate(config.init, gpt, tokenizer) if begins else None
    model = task.model(gpt, streams.generator("head"))
    keep_head(model, task.about.get("labels", []), head)
    instantiate(config.finetune, model, generator=streams.generator("adapter"))
    return model


class Undrawn(TorchFunctionMode):
    """Within it, models are made without drawing their random weights, which are about to be overwritten: that would take
    longer than reading those that are meant. Until then they are whatever the memory holds."""

    DRAWING = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self.DRAWING:
            return args[0] if args else kwargs["tensor"]  # which nn.init names, and a method does not
        return func(*args, **kwargs)


def _empty_model(config: TrainConfig, tokenizer: tokenizers.Tokenizer, task: Task) -> nn.Module:
    """The model of a configuration, with weights that mean nothing."""
    with Undrawn():
        return task.model(instantiate(config.model, vocab_size=tokenizer.vocab_size))


def _load_pretrained(path: Path) -> LoadedRun:
    """The model that another program wrote to `path`."""
    config, theirs = trained(path), pretrained.read(path)
    tokenizer = theirs.read_tokenizer()
    task = instantiate(config.task, tokenizer, {"labels": list(theirs.about.labels)} if theirs.about.labels else {})
    model = _empty_model(config, tokenizer, task)
    fill(parts(model)[0], theirs.tensors)
    keep_head(model, task.about.get("labels", []), classifier_head(theirs))
    return LoadedRun(config, tokenizer, task, model.eval(), None)
