"""Who takes part in suite=train, and the process that each of them is.

The suite (train.py) starts `python -m gpt2x.benchmark.train_contestants` anew for every measurement. It reads a job, one line
of JSON, makes the model, takes steps, writes what they took as another line, and ends. All have the same weights to begin
with, the same batches, the same AdamW, and the gradient clipped to the same norm.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gpt2x.device import peak_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gpt2x.model.gpt import GPT

WARM_UP = 2  # first steps, which are not timed: threads start in them, and memory is mapped
CLIP_NORM = 1.0
ADAMW = dict(lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

Step = Callable[[int], float]  # takes the optimizer step of this number, from 0 on; returns its loss


@dataclass(frozen=True)
class Contestant:
    """One way to take a training step.

    load      from a job (made in train.py) and the model to a step
    bf16      whether its matrix products are in bfloat16
    requires  packages that gpt2x itself does not need
    """

    name: str
    load: Callable[[dict[str, Any], GPT], Step]
    bf16: bool = False
    requires: tuple[str, ...] = ()


def _gpt2x(job: dict[str, Any], model: GPT, *, precision: str = "fp32") -> Step:
    """gpt2x-train's own loop, which stops before what is done now and then: evaluating, logging, saving."""
    from gpt2x.data.batch import Batch
    from gpt2x.device import Device
    from gpt2x.task.lm import LanguageModeling
    from gpt2x.training.optimizer import adamw
    from gpt2x.training.schedule import Cosine
    from gpt2x.training.streams import RandomStreams
    from gpt2x.training.trainer import Trainer

    batches = [Batch(inputs, targets, weight=inputs.numel()) for inputs, targets in _batches(job)]
    device = Device(**job["device"] | {"precision": precision})
    if device.kernels:
        compile_blocks(model, job["cache"])
    optimizer = adamw(model, **ADAMW, decay_all=False, layer_decay=1.0)
    trainer = Trainer(
        model=model,
        task=LanguageModeling(SimpleNamespace(token_lengths=lambda: [1] * job["vocab_size"]), {}),
        data=SimpleNamespace(train_batch=lambda i: batches[i % len(batches)]),
        saved={name for name, _ in model.named_parameters()},
        optimizer=optimizer,
        schedule=Cosine(total_steps=600_000, warmup_steps=0, min_lr_ratio=0.1),
        device=device,
        streams=RandomStreams(job["seed"]),
        tracker=None,
        checkpoints=None,
        progress=SimpleNamespace(step=lambda *row: None),
        sample=None,
        identity={},
        max_steps=600_000,
        accumulate=1,
        sequence_warmup=None,
        clip_norm=CLIP_NORM,
        ema_decay=None,
        eval_every=600_000,
        eval_train_windows=0,
        patience=None,
        divergence=None,
        checkpoint_every=None,
        log_every=1,
    )
    return lambda step: trainer.train_step()["train/loss"]


def compile_blocks(model: nn.Module, cache: str) -> None:
    """Have the model train through code for this processor. Raises RuntimeError where it cannot be had."""
    from gpt2x.model.fused import accelerate

    if not accelerate(model, cache):
        raise RuntimeError("there is no compiled code here (see the log); device.kernels=false measures torch alone")


def _nanogpt(job: dict[str, Any], model: GPT, *, fused: bool = False, bf16: bool = False) -> Step:
    """nanoGPT's way; see nanogpt.py."""
    from gpt2x.benchmark import nanogpt

    theirs = nanogpt.NanoGPT(model)
    optimizer = nanogpt.optimizer(theirs, fused=fused, **ADAMW)

    def loss(inputs: Tensor, targets: Tensor, step: int) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = nanogpt.rate(step, peak=ADAMW["lr"])
        return theirs(inputs, targets)[1]

    return _step(job, theirs, optimizer, loss, bf16)


def _transformers(job: dict[str, Any], model: GPT, *, bf16: bool = False) -> Step:
    """GPT2LMHeadModel of the package transformers, with the optimizer that its Trainer takes: AdamW, fused."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=model.vocab_size,
        n_layer=len(model.h),
        n_head=model.n_head,
        n_embd=model.wte.embedding_dim,
        n_positions=model.context_length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=model.lm_head is None,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = GPT2LMHeadModel(config).train()
    weights = {name if name == "lm_head.weight" else f"transformer.{name}": w for name, w in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():  # its linear layers within blocks hold their weights transposed
            weight = weights.pop(name)
            parameter.copy_(weight.T if parameter.dim() == 2 and ".h." in name else weight)
    if weights:
        raise ValueError(f"transformers has no {', '.join(weights)}")
    optimizer = torch.optim.AdamW(theirs.parameters(), **ADAMW, fused=True)

    def loss(inputs: Tensor, targets: Tensor, step: int) -> Tensor:
        logits_BTV = theirs(inputs).logits
        return torch.nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), targets.flatten())

    return _step(job, theirs, optimizer, loss, bf16)


def _step(
    job: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor, int], Tensor],
    bf16: bool,
) -> Step:
    """The usual step, as nanoGPT's loop has it."""
    import torch

    torch.set_num_threads(job["device"]["threads"])
    torch.set_flush_denormal(job["device"]["flush_denormals"])
    batches = list(_batches(job))
    model.train()

    def step(i: int) -> float:
        inputs, targets = batches[i % len(batches)]
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = loss_of(inputs, targets, i)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _batches(job: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """The same random tokens for everybody: inputs and targets, (B, T) each, made before any step is timed."""
    import torch

    draws = torch.Generator().manual_seed(job["seed"])
    size = (8, job["batch_size"], job["tokens"] + 1)
    return [(row[:, :-1], row[:, 1:]) for row in torch.randint(job["vocab_size"], size, generator=draws)]


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Take the steps of a job; "cpu_seconds" are those of all threads together."""
    import torch

    from gpt2x.model.gpt import GPT
    from gpt2x.training.flops import flops_per_token

    draws = torch.Generator().manual_seed(job["seed"])
    model = GPT(vocab_size=job["vocab_size"], **job["model"], generator=draws)
    flops = flops_per_token(model, job["tokens"]) * job["batch_size"] * job["tokens"]
    step = CONTESTANTS[job["contestant"]].load(job, model)
    del model  # the others have copies of its weights
    losses, seconds, cpu_seconds = [], [], []
    for i in range(WARM_UP + job["steps"]):
        started, cpu_started = time.perf_counter(), time.process_time()
        losses.append(step(i))
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    return {
        "step_seconds": seconds[WARM_UP:],
        "cpu_seconds": cpu_seconds[WARM_UP:],
        "first_losses": losses[:WARM_UP],
        "flops": flops,
        "peak_memory_bytes": peak_memory(),
    }


BASELINE = "nanogpt"  # as it runs on a CPU by itself; what the losses of the others are compared with
BEST_PEER = "nanogpt-bf16"  # with all that helps there: autocast and the fused AdamW
CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant(BASELINE, _nanogpt),
        Contestant("nanogpt-fused", functools.partial(_nanogpt, fused=True)),
        Contestant(BEST_PEER, functools.partial(_nanogpt, fused=True, bf16=True), bf16=True),
        Contestant("transformers", _transformers, requires=("transformers",)),
        Contestant("transformers-bf16", functools.partial(_transformers, bf16=True), bf16=True, requires=("transformers",)),
        Contestant("gpt2x", _gpt2x),
        Contestant("gpt2x-bf16", functools.partial(_gpt2x, precision="bf16"), bf16=True),
    )
}


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # whatever a library prints must not mix with the answer
        print(json.dumps(measure(json.loads(sys.stdin.readline()))), file=answers)
