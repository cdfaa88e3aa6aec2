"""Which of a model's parameters are trained: each function changes a model in place, before its optimizer is made."""

from __future__ import annotations

import torch
from torch import nn

from gpt2x.config.option import ConfigError, show
from gpt2x.interop.peft import adapter_settings, read_adapter
from gpt2x.model.lora import add_lora, targeted


def lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    rslora: bool,
    dora: bool,
    targets: list[str],
    adapter: str | None,
    generator: torch.Generator | None = None,
) -> None:
    """Freeze the model and train adapters beside its layers, new ones or those of the PEFT folder `adapter`.

    The settings must be those of `adapter` (but for its dropout), so that a run's configuration says what its model
    is without the folder. Raises ConfigError where they are not or a target is not there, UserError where the folder
    cannot be used.
    """
    try:
        mine = dict(rank=rank, alpha=alpha, rslora=rslora, dora=dora)
        if adapter is None:
            add_lora(model, **mine, dropout=dropout, targets=targets, generator=generator)
            return
        theirs = adapter_settings(model, adapter)
        other = {name: theirs[name] for name in mine if mine[name] != theirs[name]}
        if targeted(model, targets).keys() != targeted(model, theirs["targets"]).keys():
            other["targets"] = theirs["targets"]
        if other:
            name, value = next(iter(other.items()))
            remedy = " ".join(f"finetune.{name}={show(value)}" for name, value in other.items())
            problem = f"the adapter in {adapter} has {show(value)}"
            raise ConfigError(name, (mine | {"targets": targets})[name], problem, f"add {remedy}")
        read_adapter(model, adapter, dropout=dropout)
    except ConfigError as error:
        raise error.within("finetune") from None
