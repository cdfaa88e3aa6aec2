"""Where a model's first weights come from."""

from __future__ import annotations

import torch

from gpt2x.config.option import ConfigError
from gpt2x.model.classifier import parts
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.base import Tokenizer

_REMEDY = (
    "leave out model= and model.n_...=: with init=run the shape is the run's own (the context may be shorter; for a longer "
    "one train the base with it)"
)


def scratch(gpt: GPT, tokenizer: Tokenizer) -> None:
    """The random weights that the model was made with."""


@torch.no_grad()
def from_run(gpt: GPT, tokenizer: Tokenizer, *, path: str, which: str) -> None:
    """The weights of an earlier run's model, whatever its task; a head of its own is left behind if this model has none.

    The context may be shorter than the run's: the positions beyond it are left out. Where positions are not learned it may
    be longer too. Raises ConfigError if the run has another tokenizer, or a model of another shape or other positions.
    """
    from gpt2x.training.load import load_run  # which in turn builds a run's model anew, where it is an adapter's base

    run = load_run(path, which)
    if run.tokenizer.fingerprint != tokenizer.fingerprint:
        theirs, mine = (f"{t.kind}, {t.vocab_size:,}" for t in (run.tokenizer, tokenizer))
        problem = f"that run's tokens ({theirs}) are not this one's ({mine})"
        raise ConfigError("init.path", path, problem, "leave out tokenizer=: with init=run the tokenizer is the run's own")
    source = parts(run.model)[0]
    weights = dict(source.named_parameters())
    weights.setdefault("lm_head.weight", weights["wte.weight"])  # a tied head becomes one of its own
    if source.position != gpt.position:
        problem = f"the model of init.path={path} has position={source.position}, and its weights know no other"
        raise ConfigError("model.position", gpt.position, problem, "leave it out: with init=run it is the run's own")
    if gpt.position == "learned":
        weights["wpe.weight"] = weights["wpe.weight"][: gpt.context_length]
    mine = dict(gpt.named_parameters())
    alike = all(name in weights and weights[name].shape == parameter.shape for name, parameter in mine.items())
    if not alike or (len(source.h), source.n_head) != (len(gpt.h), gpt.n_head):
        problem = f"its model has {source}, this one {gpt}"
        raise ConfigError("init.path", path, problem, _REMEDY)
    for name, parameter in mine.items():
        parameter.copy_(weights[name])
