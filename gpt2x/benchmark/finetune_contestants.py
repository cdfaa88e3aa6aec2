"""Who takes part in suite=finetune, and the process that each of them runs in.

The suite (finetune.py) starts `python -m gpt2x.benchmark.finetune_contestants` once for each. It reads a job, one line of
JSON, makes the model and its batches, says so, and then for each further line trains some steps and answers what they took.
All have the same weights to begin with, the same batches and the same AdamW.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2x.benchmark.process import Answer, serve
from gpt2x.benchmark.train_contestants import compile_blocks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gpt2x.data.batch import Batch
    from gpt2x.data.examples import ExampleData
    from gpt2x.model.classifier import Classifier

CLASSES = 2
LEARNING_RATE, WEIGHT_DECAY = 5e-5, 0.1  # the book's


@dataclass(frozen=True)
class Contestant:
    """One way to compute the steps of a classifier's training.

    load      from a job (made in finetune.py) to what trains: it answers with the "seconds" of a step, the "losses" of all
              steps it took and, where there is something to compute once, the "states_seconds" of that for one batch
    same      whether it trains the same parameters in the same precision as the book, so that the losses are the same
    bf16      whether its matrix products are in bfloat16
    requires  packages that gpt2x itself does not need
    """

    name: str
    load: Callable[[dict[str, Any]], Answer]
    same: bool = False
    bf16: bool = False
    requires: tuple[str, ...] = ()


def _gpt2x(job: dict[str, Any], *, finetune: str = "last_block", cached: bool = False, precision: str = "fp32") -> Answer:
    """gpt2x as gpt2x-train runs it; `cached` with what the frozen blocks make of the examples known."""
    from torch import nn

    from gpt2x.device import Device
    from gpt2x.training.finetune import frozen_blocks, full, last_block
    from gpt2x.training.frozen import FrozenStates
    from gpt2x.training.optimizer import adamw

    device = Device(**job["device"] | {"precision": precision})
    model, data = _model(job), _data(job)
    if device.kernels:
        compile_blocks(model, job["cache"])
    full(model) if finetune == "full" else last_block(model, blocks=1)
    adam = dict(betas=[0.9, 0.999], eps=1e-8, decay_all=True, layer_decay=1.0)  # as torch.optim.AdamW is by itself
    optimizer = adamw(model, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, **adam)

    def logits(batch: Batch) -> Tensor:
        with device.autocast():
            return model(batch.inputs, batch.lengths, batch.below)

    def norm() -> None:  # which the trainer looks at in each step
        nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if not cached:
            return _steps(_batches(data), model, logits, optimizer, norm)
        started = time.perf_counter()
        states = FrozenStates(model, frozen_blocks(model), data, device, None)
        seconds = (time.perf_counter() - started) / data.batches_per_epoch
        return _steps(map(states, _batches(data)), model, logits, optimizer, norm) | {"states_seconds": seconds}

    return answer


def _book(job: dict[str, Any]) -> Answer:
    """The book's way; see book.py."""
    import torch

    from gpt2x.benchmark.book import BookClassifier

    torch.set_num_threads(job["device"]["threads"])
    model, data = BookClassifier(_model(job)), _data(job)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    return lambda question: _steps(_batches(data), model, lambda batch: model(batch.inputs)[:, -1, :], optimizer)


def _transformers(job: dict[str, Any], *, bf16: bool = False) -> Answer:
    """GPT2ForSequenceClassification of the package transformers, with the same part of it frozen."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.set_num_threads(job["device"]["threads"])
    ours, data = _model(job), _data(job)
    gpt = ours.gpt
    config = GPT2Config(
        vocab_size=gpt.vocab_size,
        n_layer=len(gpt.h),
        n_head=gpt.n_head,
        n_embd=gpt.wte.embedding_dim,
        n_positions=gpt.context_length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        num_labels=CLASSES,
        pad_token_id=-1,  # no token: the state of the last position of each row is what counts
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2ForSequenceClassification(config)
    model.score = torch.nn.Linear(gpt.wte.embedding_dim, CLASSES)  # with a bias, as the book's has one
    weights = {name.replace("gpt.", "transformer.", 1): weight for name, weight in ours.state_dict().items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # its linear layers within blocks hold their weights transposed
            weight = weights.pop(name)
            parameter.copy_(weight.T if parameter.dim() == 2 and ".h." in name else weight)
    if weights:
        raise ValueError(f"transformers has no {', '.join(weights)}")
    model.requires_grad_(False)
    for part in (model.transformer.h[-1], model.transformer.ln_f, model.score):
        part.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def logits(batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            return model(batch.inputs, use_cache=False).logits

    return lambda question: _steps(_batches(data), model, logits, optimizer)


def _model(job: dict[str, Any]) -> Classifier:
    """The same weights for everybody."""
    import torch

    from gpt2x.model.classifier import Classifier
    from gpt2x.model.gpt import GPT

    draws = torch.Generator().manual_seed(job["seed"])
    gpt = GPT(vocab_size=job["vocab_size"], **job["model"], generator=draws)
    return Classifier(gpt, n_classes=CLASSES, pooling="padded_last", generator=draws)


def _data(job: dict[str, Any]) -> ExampleData:
    """The same rows for everybody, all of one length, in the same order each time."""
    import numpy as np

    from gpt2x.data.examples import Example, ExampleData

    rows = [Example(np.array(row["tokens"]), row["class"]) for row in job["rows"]]
    sizes = dict(batch_size=job["batch_size"], eval_batch_size=job["batch_size"])
    return ExampleData({"train": rows}, **sizes, shuffle=False, seed=0, name="random", drop_last=False)


def _batches(data: ExampleData) -> Iterable[Batch]:
    return (data.train_batch(i) for i in range(data.batches_per_epoch))


def _steps(
    batches: Iterable[Batch],
    model: nn.Module,
    logits: Callable[[Batch], Tensor],
    optimizer: Any,
    after_backward: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Take a step with each batch."""
    from torch.nn.functional import cross_entropy

    model.train()
    losses, started = [], time.perf_counter()
    for batch in batches:
        loss = cross_entropy(logits(batch).float(), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        after_backward()
        optimizer.step()
        losses.append(loss.item())
    return {"seconds": (time.perf_counter() - started) / len(losses), "losses": losses}


BASELINE = "book"  # the others' time is told as a share of this one's
CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant("book", _book, same=True),
        Contestant("transformers", _transformers, same=True, requires=("transformers",)),
        Contestant("transformers-bf16", functools.partial(_transformers, bf16=True), bf16=True, requires=("transformers",)),
        Contestant("gpt2x", _gpt2x, same=True),
        Contestant("gpt2x-bf16", functools.partial(_gpt2x, precision="bf16"), bf16=True),
        Contestant("gpt2x-cached", functools.partial(_gpt2x, cached=True), same=True),
        Contestant("gpt2x-cached-bf16", functools.partial(_gpt2x, cached=True, precision="bf16"), bf16=True),
        Contestant("gpt2x-full", functools.partial(_gpt2x, finetune="full")),
    )
}


if __name__ == "__main__":
    serve(lambda job: (CONTESTANTS[job["contestant"]].load(job), {}))
