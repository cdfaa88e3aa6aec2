"""Where a model's first weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.config.option import ConfigError
from gpt2x.interop.pretrained import Pretrained
from gpt2x.model.classifier import Classifier, parts
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.base import Tokenizer
from gpt2x.training.checkpoint import Checkpoints
from gpt2x.training.config import HuggingFaceInitConfig, OpenAIInitConfig, RunInitConfig

_REMEDY = (
    "leave out model= and model.n_...=: with init=run the shape is the run's own (the context may be shorter; for a longer "
    "one train the base with it, or make more positions: init.positions=repeat, init.positions=interpolate)"
)


class Head(NamedTuple):
    """A classifier's head: the names of its classes, and what it computes, (classes, C) and (classes,) or None."""

    labels: list[str]
    weight: Tensor
    bias: Tensor | None


def locate(init: Any, *, cache: str | Path, mirror: str | Path | None) -> None:
    """Note in `init`, a config of this group, where what it names lies now, fetched if need be: for whoever looks from
    another folder, or after the first run was trained on. Raises UserError where it cannot be had."""
    if isinstance(init, RunInitConfig):
        first = Path(init.path).resolve()
        init.path, init.which = str(first), str(Checkpoints(first / "checkpoints").select(init.which).step)
    elif isinstance(init, OpenAIInitConfig):
        from gpt2x.interop.openai import fetch

        init.path = str((fetch(init.size, cache=cache, mirror=mirror) if init.path is None else Path(init.path)).resolve())
    elif isinstance(init, HuggingFaceInitConfig):
        from gpt2x.interop.huggingface import find

        init.path = str(find(init.path).resolve())


# Each function below fills a GPT with the weights that it is to begin with, and gives the head of the classifier that they
# are of, if they are of one: whether the new model has a use for it is another matter (see `keep_head`).


def scratch(gpt: GPT, tokenizer: Tokenizer) -> None:
    """The random weights that the model was made with."""


def from_run(gpt: GPT, tokenizer: Tokenizer, *, path: str, which: str, positions: str | None) -> Head | None:
    """The weights of an earlier run's model, whatever its task; a language model's own head is left behind if this has none.

    The context may be shorter than the run's: the positions beyond it are left out. Where positions are not learned it may
    be longer too, else only with `positions` (see `spread`). Raises ConfigError if the run has another tokenizer, or a model
    of another shape or other positions.
    """
    from gpt2x.training.load import load_run  # which in turn builds a run's model anew, where it is an adapter's base

    run = load_run(path, which)
    if run.tokenizer.fingerprint != tokenizer.fingerprint:
        theirs, mine = (f"{t.kind}, {t.vocab_size:,}" for t in (run.tokenizer, tokenizer))
        problem = f"that run's tokens ({theirs}) are not this one's ({mine})"
        raise ConfigError("init.path", path, problem, "leave out tokenizer=: with init=run the tokenizer is the run's own")
    source = parts(run.model)[0]
    if source.position != gpt.position:
        problem = f"the model of init.path={path} has position={source.position}, and its weights know no other"
        raise ConfigError("model.position", gpt.position, problem, "leave it out: with init=run it is the run's own")
    longer = gpt.context_length > source.context_length and gpt.wpe is not None
    if _shape(gpt) != _shape(source) or (longer and positions is None):
        problem = f"its model has {source}, this one {gpt}"
        raise ConfigError("init.path", path, problem, _REMEDY)
    fill(gpt, dict(source.named_parameters()), positions)
    if not isinstance(run.model, Classifier):
        return None
    return Head(run.task.labels, run.model.score.weight.detach(), run.model.score.bias.detach())


def from_openai(gpt: GPT, tokenizer: Tokenizer, *, size: str | None, path: str, positions: str | None) -> None:
    """The weights of OpenAI's model in the folder `path`, which is what `locate` has noted; see `_from_pretrained`."""
    from gpt2x.interop.openai import read

    _from_pretrained(gpt, tokenizer, read(path), positions)


def from_hf(gpt: GPT, tokenizer: Tokenizer, *, path: str, positions: str | None) -> Head | None:
    """The same of a model in Hugging Face's form."""
    from gpt2x.interop.huggingface import read

    pretrained = read(Path(path))
    _from_pretrained(gpt, tokenizer, pretrained, positions)
    return classifier_head(pretrained)


def _from_pretrained(gpt: GPT, tokenizer: Tokenizer, pretrained: Pretrained, positions: str | None) -> None:
    """The context may be shorter than the checkpoint's, and longer with `positions` (see `spread`). Raises ConfigError if
    that has another tokenizer, or is a model of another shape."""
    about = pretrained.about
    theirs = pretrained.read_tokenizer()
    if theirs.fingerprint != tokenizer.fingerprint:
        kinds = [f"{t.kind}, {t.vocab_size:,}" for t in (theirs, tokenizer)]
        problem = f"that model's tokens ({kinds[0]}) are not this one's ({kinds[1]})"
        raise ConfigError("init.path", about.path, problem, f"leave out tokenizer=: init={about.format} brings its own")
    shape = tuple(about.model[name] for name in ("n_layer", "n_head", "n_embd"))
    longer = gpt.context_length > about.model["context_length"]
    if shape != _shape(gpt) or gpt.position != "learned" or (longer and positions is None):
        problem = f"its model has {about.model}, this one {gpt}"
        raise ConfigError("init.path", about.path, problem, f"leave out model=: init={about.format} brings its own")
    fill(gpt, pretrained.tensors, positions)


def classifier_head(pretrained: Pretrained) -> Head | None:
    """The head of a classifier that another program wrote."""
    if pretrained.about.labels is None:
        return None
    return Head(list(pretrained.about.labels), pretrained.tensors["score.weight"], pretrained.tensors.get("score.bias"))


@torch.no_grad()
def keep_head(model: nn.Module, labels: list[str], head: Head | None) -> None:
    """Copy `head` to a classifier of the same classes, in the same order; where it has no bias that becomes zeros."""
    if head is not None and isinstance(model, Classifier) and head.labels == labels:
        model.score.weight.copy_(head.weight)
        model.score.bias.copy_(torch.zeros(len(labels)) if head.bias is None else head.bias)


@torch.no_grad()
def fill(gpt: GPT, weights: Mapping[str, Tensor], positions: str | None = None) -> None:
    """Copy `weights` of a model of the same shape, each asked for once and let go, into `gpt`.

    A head of its own begins, where `weights` have none, as the embedding it was tied to. Rows of an embedding that no token
    has are left out, positions beyond the context too; those that are lacking are made (see `spread`).
    """
    for name, parameter in gpt.named_parameters():
        tensor = weights["wte.weight" if name == "lm_head.weight" and name not in weights else name]
        if name == "wpe.weight" and len(tensor) < len(parameter):
            tensor = spread(tensor, len(parameter), positions)
        parameter.copy_(tensor[: len(parameter)])


def spread(wpe: Tensor, n: int, how: str) -> Tensor:
    """More learned positions (n, C) out of fewer (m, C): "repeat" them from the first on, or "interpolate" them linearly, so
    that the first and the last stay what they are."""
    if how == "repeat":
        return wpe.repeat(-(-n // len(wpe)), 1)[:n]
    return F.interpolate(wpe.T[None], size=n, mode="linear", align_corners=True)[0].T


def _shape(gpt: GPT) -> tuple[int, int, int]:
    return len(gpt.h), gpt.n_head, gpt.wte.embedding_dim
