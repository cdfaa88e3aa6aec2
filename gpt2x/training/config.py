"""Settings of the optimizer and schedule groups and of the training loop."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from gpt2x.config.option import ConfigError, option

SIZES = ("124M", "355M", "774M", "1558M")  # of OpenAI's models
HALF_LIFE = (
    "the second moment forgets half in as many tokens, whatever the batch: its decay is 0.5^(tokens of a step / this); null: "
    "that of betas, at each step"
)
LAYER_DECAY = "learning rate of each block, as a share of that of the block above it; embeddings come last"
POSITIONS = (
    "where they are learned, how a context longer than the checkpoint's gets those it lacks; repeat: the same again, from the "
    "first on (Longformer, Beltagy et al., 2020); interpolate: all are spread over it (as ViT does, Dosovitskiy et al., 2021); "
    "null: it is refused"
)


@dataclass(kw_only=True)
class AdamWConfig:
    """AdamW (Loshchilov and Hutter, 2019); matrices decay, norms and biases do not."""

    _target_: str = "gpt2x.training.optimizer.adamw"
    lr: float = option(3e-3, "peak learning rate", above=0, maximum=10)
    weight_decay: float = option(0.1, "decay of matrices and embeddings", minimum=0, maximum=10)
    betas: list[float] = option([0.9, 0.95], "decay of the first and second moment", minimum=0, below=1)
    beta2_half_life_tokens: float | None = option(None, HALF_LIFE, above=0)
    eps: float = option(1e-8, "added to the denominator", above=0)
    decay_all: bool = option(False, "decay norms and biases too, as the plain torch optimizer does")
    layer_decay: float = option(1.0, LAYER_DECAY, above=0, maximum=1)

    def check(self) -> None:
        if len(self.betas) != 2:
            raise ConfigError("betas", self.betas, "two numbers are needed", "such as optimizer.betas=[0.9,0.95]")


@dataclass(kw_only=True)
class MuonConfig(AdamWConfig):
    """Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for embeddings, head, norms and biases."""

    _target_: str = "gpt2x.training.optimizer.muon"
    muon_lr: float = option(0.02, "peak learning rate of the matrices", above=0, maximum=10)
    muon_weight_decay: float = option(0.01, "decay of the matrices", minimum=0, maximum=10)
    momentum: float = option(0.95, "momentum of their gradients", minimum=0, below=1)
    momentum_warmup_steps: int = option(0, "steps in which it rises from 0.85 to that", minimum=0)
    nesterov: bool = option(True, "Nesterov's momentum")
    ns_steps: int = option(
        5, "Newton-Schulz iterations: fewer are faster, and singular values further from 1", minimum=1, below=100
    )
    ns_precision: str = option(
        "auto",
        "what they are computed in; auto: bf16 where there are instructions for it, else fp32",
        choices=("auto", "fp32", "bf16"),
    )
    adjust_lr: str = option(
        "original",
        "how the shape of a matrix changes its rate; original: more for one that is taller than wide; match_rms_adamw: so that "
        "steps are as large as AdamW's, and its rates and decay right here, too",
        choices=("original", "match_rms_adamw"),
    )
    lr: float = option(3e-3, "peak learning rate of all else", above=0, maximum=10)
    weight_decay: float = option(0.1, "decay of embeddings and head", minimum=0, maximum=10)


@dataclass(kw_only=True)
class SGDConfig:
    """Stochastic gradient descent with momentum."""

    _target_: str = "gpt2x.training.optimizer.sgd"
    lr: float = option(0.1, "peak learning rate", above=0, maximum=100)
    momentum: float = option(0.9, "momentum", minimum=0, below=1)
    nesterov: bool = option(False, "Nesterov's momentum")
    weight_decay: float = option(0.0, "decay of matrices and embeddings", minimum=0, maximum=10)
    decay_all: bool = option(False, "decay norms and biases too")
    layer_decay: float = option(1.0, LAYER_DECAY, above=0, maximum=1)

    def check(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov", True, "Nesterov's momentum needs a momentum above 0", "set optimizer.momentum=0.9")


@dataclass(kw_only=True)
class CosineConfig:
    """Linear warm-up, then half a cosine down to a floor (Loshchilov and Hutter, 2017)."""

    _target_: str = "gpt2x.training.schedule.Cosine"
    warmup_steps: int | None = option(None, "steps from zero to the peak; null: a tenth of the run, at most 100", minimum=0)
    min_lr_ratio: float = option(0.1, "the floor, as a share of the peak", minimum=0, maximum=1)


@dataclass(kw_only=True)
class WSDConfig:
    """Warm-up, stable, decay: a trapezoid."""

    _target_: str = "gpt2x.training.schedule.WSD"
    warmup_steps: int | None = option(None, "steps from zero to the peak; null: a tenth of the run, at most 100", minimum=0)
    decay_fraction: float = option(0.4, "share of all steps spent on the linear way down", minimum=0, maximum=1)
    min_lr_ratio: float = option(0.0, "where the way down ends, as a share of the peak", minimum=0, maximum=1)


@dataclass(kw_only=True)
class LinearConfig:
    """Linear warm-up, then a straight line down."""

    _target_: str = "gpt2x.training.schedule.Linear"
    warmup_steps: int | None = option(None, "steps from zero to the peak; null: a tenth of the run, at most 100", minimum=0)
    min_lr_ratio: float = option(0.0, "where the line ends, as a share of the peak", minimum=0, maximum=1)


@dataclass(kw_only=True)
class ConstantConfig:
    """Linear warm-up, then the peak for ever."""

    _target_: str = "gpt2x.training.schedule.Constant"
    warmup_steps: int = option(0, "steps from zero to the peak", minimum=0)


@dataclass(kw_only=True)
class RangeTestConfig:
    """A learning-rate range test: from almost nothing to the peak, by the same factor at each step (Smith, 2015)."""

    _target_: str = "gpt2x.training.schedule.RangeTest"
    warmup_steps: ClassVar[int] = 0
    start: float = option(1e-5, "where the rate begins, as a share of the peak", above=0, below=1)


@dataclass(kw_only=True)
class LoRAConfig:
    """LoRA (Hu et al., 2021): the model is frozen, and small matrices beside its linear layers are trained."""

    _target_: str = "gpt2x.training.finetune.lora"
    rank: int = option(8, "inner width of the two matrices", minimum=1)
    alpha: float = option(16.0, "how much their product counts: it is scaled by alpha/rank", above=0)
    dropout: float = option(0.0, "dropout on what goes into the first of the two", minimum=0, below=1)
    rslora: bool = option(False, "scale by alpha/sqrt(rank), so that higher ranks learn as fast (Kalajdzievski, 2023)")
    dora: bool = option(False, "learn the length of each output's weights by itself (DoRA, Liu et al., 2024)")
    targets: list[str] = option(
        ["c_attn", "c_proj", "c_fc"], "the layers, by the ends of their names: c_proj, attn.c_proj, h.11.mlp.c_fc"
    )
    adapter: str | None = option(
        None, "a PEFT folder (adapter_config.json, adapter_model.safetensors) to start from; null: a new one", verbatim=True
    )

    def check(self) -> None:
        if not self.targets:
            raise ConfigError("targets", [], "nothing would be trained", "such as finetune.targets=[c_attn]")

    def check_available(self) -> None:
        if self.adapter is not None and not os.path.isfile(os.path.join(self.adapter, "adapter_config.json")):
            problem = "not the folder of a PEFT adapter (it has no adapter_config.json)"
            raise ConfigError("adapter", self.adapter, problem, f"looked from {os.getcwd()}")


@dataclass(kw_only=True)
class TrainerConfig:
    """The training loop."""

    max_steps: int | None = option(None, "optimizer steps to take", minimum=1)
    max_epochs: float | None = option(None, "passes over the training data to make, instead of max_steps", above=0)
    accumulate: int = option(1, "micro-batches added up in one optimizer step", minimum=1)
    sequence_warmup_steps: int = option(
        0, "of text: steps in which the rows of a batch grow from sequence_start tokens to all they have; 0: none", minimum=0
    )
    sequence_start: int = option(8, "tokens of each row at the first of these", minimum=1)
    recompute: bool = option(
        False, "keep only what enters each block for the backward pass and compute the rest again: slower, for less memory"
    )
    clip_norm: float | None = option(1.0, "clip the gradient's norm to this; null: never", above=0)
    ema_decay: float | None = option(
        None, "also keep an exponential moving average of the weights, and evaluate and sample from it", above=0, below=1
    )
    eval_every: int = option(100, "steps between evaluations on the whole validation split", minimum=1)
    eval_train_windows: int = option(
        0, "also evaluate on about as many windows (or rows) of the training split, the same each time", minimum=0
    )
    patience: int | None = option(
        None, "stop after as many evaluations without a better validation loss; null: never", minimum=1
    )
    divergence: float | None = option(
        None,
        "end the run once the training loss, averaged over about 20 steps, is so many times its lowest, or no number any "
        "more; null: never (and a loss that is no number makes the run fail)",
        above=1,
    )
    checkpoint_every: int | None = option(None, "steps between checkpoints; null: at every evaluation", minimum=1)
    frozen_cache: str = option(
        "auto",
        "where finetune freezes the lower layers, compute what they make of each example only once: auto (kept in memory if "
        "it fits in half of what is free, else in a file), memory, disk (under paths.cache, where later runs find it too), off",
        choices=("auto", "memory", "disk", "off"),
    )
    frozen_cache_gb: float = option(8.0, "the most that may take, in GB; above, it is computed anew each time", above=0)
    keep_last: int = option(2, "newest checkpoints to keep", minimum=1)
    keep_every: int | None = option(None, "also keep for good every checkpoint at a multiple of this step", minimum=1)
    keep_best: bool = option(True, "also keep the checkpoint with the lowest validation loss")
    log_every: int = option(10, "steps between rows in metrics.jsonl", minimum=1)
    log_seconds: float = option(10.0, "seconds between progress lines where there is no terminal", minimum=0)

    def check(self) -> None:
        if (self.max_steps is None) == (self.max_epochs is None):
            both = self.max_steps is not None
            given = "both are given" if both else "neither is given"
            remedy = "for epochs, add trainer.max_steps=null" if both else "such as trainer.max_steps=1000"
            raise ConfigError(
                "max_steps",
                self.max_steps,
                f"exactly one of max_steps and max_epochs says how long to train; {given}",
                remedy,
            )


@dataclass(kw_only=True)
class ScratchConfig:
    """Random weights."""

    _target_: str = "gpt2x.training.init.scratch"


@dataclass(kw_only=True)
class RunInitConfig:
    """The weights, the model and the tokenizer of an earlier run."""

    _target_: str = "gpt2x.training.init.from_run"
    path: str = option(help="the folder of the run whose model to go on from", verbatim=True)
    which: str = option("best", "which of the run's checkpoints: best, last, or a step's number")
    positions: str | None = option(None, POSITIONS, choices=(None, "repeat", "interpolate"))

    def check(self) -> None:
        if self.which not in ("best", "last") and not self.which.isdecimal():
            raise ConfigError("which", self.which, "expected best, last, or a step's number")


@dataclass(kw_only=True)
class OpenAIInitConfig:
    """The weights, the model and the tokenizer of a GPT-2 of OpenAI's, by its size or by the folder of its files."""

    _target_: str = "gpt2x.training.init.from_openai"
    size: str | None = option(
        None,
        "which one; its files are looked for in paths.mirror/gpt2/SIZE, else fetched once into paths.cache/openai/SIZE (124M: "
        "498 MB); null: the one in path",
        choices=(None, *SIZES),
    )
    path: str | None = option(
        None, "a folder with its files (hparams.json, model.ckpt.index, ...); null: those of size, noted here", verbatim=True
    )
    positions: str | None = option(None, POSITIONS, choices=(None, "repeat", "interpolate"))

    def check(self) -> None:
        if self.size is None and self.path is None:
            remedy = "such as init.size=124M, or init.path=FOLDER"
            raise ConfigError("size", None, "neither a size nor a folder is given", remedy)


@dataclass(kw_only=True)
class HuggingFaceInitConfig:
    """The weights, the model and the tokenizer of a GPT-2 in Hugging Face's form."""

    _target_: str = "gpt2x.training.init.from_hf"
    path: str = option(
        help="a folder with its files (config.json, model.safetensors, ...), or its name on the hub, such as gpt2",
        verbatim=True,
    )
    positions: str | None = option(None, POSITIONS, choices=(None, "repeat", "interpolate"))


@dataclass(kw_only=True)
class FullConfig:
    """Train everything."""

    _target_: str = "gpt2x.training.finetune.full"


@dataclass(kw_only=True)
class LastBlockConfig:
    """Train the last block (or more), the final norm and the head."""

    _target_: str = "gpt2x.training.finetune.last_block"
    blocks: int = option(1, "how many blocks, from the last one down", minimum=0)


@dataclass(kw_only=True)
class HeadConfig:
    """Train the head alone."""

    _target_: str = "gpt2x.training.finetune.head"
