"""Where a model's first weights come from."""

from __future__ import annotations

import torch

from gpt2x.config.option import ConfigError
from gpt2x.errors import UserError
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.base import Tokenizer


def scratch(gpt: GPT, tokenizer: Tokenizer) -> None:
    """The random weights that the model was made with."""


@torch.no_grad()
def from_run(gpt: GPT, tokenizer: Tokenizer, *, path: str, which: str) -> None:
    """The weights of an earlier run's model, whatever its task: its head is left behind if this model has none of the kind.

    The context may be shorter than the run's; then the positions beyond it are left out. Raises UserError if the run has
    another tokenizer, or a model of another shape.
    """
    from gpt2x.model.classifier import parts
    from gpt2x.training.load import load_run

    run = load_run(path, which)
    if run.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"init.path={path}: that run's tokens ({run.tokenizer.kind}) are not this one's ({tokenizer.kind})\n"
            "  leave out tokenizer=: with init=run the tokenizer is the run's own"
        )
    source = dict(parts(run.model)[0].named_parameters())
    for name, parameter in gpt.named_parameters():
        weight = source.get(name)
        if name == "lm_head.weight" and weight is None:
            weight = source["wte.weight"]  # a tied head becomes one of its own
        if name == "wpe.weight" and weight.shape[0] > parameter.shape[0]:
            weight = weight[: parameter.shape[0]]
        if weight is None or weight.shape != parameter.shape:
            problem = f"its model has {run.model}, this one {gpt}"
            raise ConfigError("init.path", path, problem, "leave out model=: with init=run the model's shape is the run's own")
        parameter.copy_(weight)
    missing = [name for name in source if name.startswith("h.") and name not in dict(gpt.named_parameters())]
    if missing:
        problem = f"its model has {run.model}, this one {gpt}"
        raise ConfigError("init.path", path, problem, "leave out model=: with init=run the model's shape is the run's own")
