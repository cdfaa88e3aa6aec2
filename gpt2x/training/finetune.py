"""Which part of a model is trained: each function here marks the parameters of one way to fine-tune.

A model comes in with all its parameters trained; afterwards those that are frozen have `requires_grad` False. The
optimizer, the checkpoints and the cache of frozen states (frozen.py) go by that mark alone.
"""

from __future__ import annotations

import torch
from torch import nn

from gpt2x.config.option import ConfigError, show
from gpt2x.interop.peft import adapter_settings, read_adapter
from gpt2x.model.classifier import Classifier, parts
from gpt2x.model.lora import add_lora, targeted


def full(model: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Train everything."""


def last_block(model: nn.Module, *, blocks: int, generator: torch.Generator | None = None) -> None:
    """Train the last `blocks` blocks, the final norm and the head (a tied head stays, with the embedding, as it is)."""
    gpt, head = parts(model)
    if blocks > len(gpt.h):
        raise ValueError(f"blocks={blocks}: the model has {len(gpt.h)}")
    model.requires_grad_(False)
    for part in (*gpt.h[len(gpt.h) - blocks :], gpt.ln_f, head):
        if part is not None:
            part.requires_grad_(True)


def head(model: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Train the head alone, which must not be tied: that would be the token embedding, below all blocks."""
    head = parts(model)[1]
    if head is None:
        raise ValueError("the model's head is its token embedding, so there is no head to train alone")
    model.requires_grad_(False)
    head.requires_grad_(True)


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


def frozen_blocks(model: nn.Module) -> int:
    """How many blocks from the lowest on nothing is trained in or below; 0 if an embedding is trained."""
    gpt, _ = parts(model)
    if any(embedding.weight.requires_grad for embedding in gpt.embeddings):
        return 0
    trained = [i for i, block in enumerate(gpt.h) if any(p.requires_grad for p in block.parameters())]
    return trained[0] if trained else len(gpt.h)


def table(model: nn.Module) -> str:
    """What is trained and what is frozen, a line for each part; neighbouring blocks of the same kind share one."""
    gpt, head = parts(model)
    names = ["wte", "wpe" if gpt.wpe is not None else None, "ngrams" if gpt.ngrams is not None else None]
    rows = [(", ".join(filter(None, names)), gpt.embeddings)]
    rows += [(f"h.{i}", [block]) for i, block in enumerate(gpt.h)]
    rows.append(("ln_f", [gpt.ln_f]))
    if head is not None:
        rows.append(("score" if isinstance(model, Classifier) else "lm_head", [head]))
    lines: list[list] = []  # first name, last name, trained, frozen
    for name, modules in rows:
        parameters = [p for module in modules for p in module.parameters()]
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        frozen = sum(p.numel() for p in parameters if not p.requires_grad)
        alike = lines and name.startswith("h.") and lines[-1][0].startswith("h.") and lines[-1][4:] == [trained, frozen]
        if alike:
            lines[-1][1:4] = [name, lines[-1][2] + trained, lines[-1][3] + frozen]
        else:
            lines.append([name, name, trained, frozen, trained, frozen])
    trained, frozen = (sum(line[i] for line in lines) for i in (2, 3))
    lines.append(["all", "all", trained, frozen, 0, 0])
    text = [f"{'':15} {'trained':>13} {'frozen':>13}"]
    for first, last, n_trained, n_frozen, *_ in lines:
        text.append(f"{first if first == last else f'{first} - {last}':15} {n_trained:13,} {n_frozen:13,}")
    return "\n".join([*text, f"trained: {trained / (trained + frozen):.2%}"])
