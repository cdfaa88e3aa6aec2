"""Settings of the suite group."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.benchmark import (
    finetune_contestants,
    generate_contestants,
    job_contestants,
    load_contestants,
    train_contestants,
)
from gpt2x.config.option import ConfigError, option
from gpt2x.model.config import GPTConfig

_GENERATING, _FINETUNING = ", ".join(generate_contestants.CONTESTANTS), ", ".join(finetune_contestants.CONTESTANTS)


@dataclass(kw_only=True)
class GenerateSuiteConfig:
    """How fast text is generated, greedily, by a model of random weights."""

    _target_: str = "gpt2x.benchmark.generate.GenerateSuite"
    name: str = option("generate", "what the suite is called in the report")
    contestants: list[str] | None = option(None, f"who takes part; null: all, which are {_GENERATING}")
    batch_sizes: list[int] = option([1, 8], "prompts generated for at once; llama.cpp takes part with 1", minimum=1)
    prompt_tokens: int = option(32, "length of each prompt", minimum=1)
    new_tokens: int = option(128, "tokens generated for each prompt; end-of-text is ignored", minimum=2)
    rounds: int = option(5, "measurements of each contestant, taken in turns, after a first one that is not counted", minimum=1)
    timeout: float = option(600.0, "seconds after which a contestant that loads or generates has failed", above=0)

    def check(self) -> None:
        _check_list("batch_sizes", self.batch_sizes)
        _check_contestants(self.contestants, generate_contestants.CONTESTANTS)

    def check_model(self, model: GPTConfig) -> None:
        """Raise ConfigError if the model has no room for what is measured with it."""
        if self.prompt_tokens + self.new_tokens > model.context_length:
            problem = f"with suite.prompt_tokens={self.prompt_tokens} that is more than model.context_length="
            remedy = "use fewer tokens or a model with a longer context"
            raise ConfigError("new_tokens", self.new_tokens, f"{problem}{model.context_length}", remedy)


@dataclass(kw_only=True)
class FinetuneSuiteConfig:
    """How long the fine-tuning of a classifier takes as experiment=spam_book does it, from random weights."""

    _target_: str = "gpt2x.benchmark.finetune.FinetuneSuite"
    name: str = option("finetune", "what the suite is called in the report")
    contestants: list[str] | None = option(None, f"who takes part; null: all, which are {_FINETUNING}")
    batch_size: int = option(8, "rows in a step", minimum=1)
    tokens: int = option(120, "tokens in each row, those that fill it up included", minimum=1)
    steps: int = option(2, "steps in one measurement", minimum=1)
    rounds: int = option(5, "measurements of each contestant, taken in turns, after a first one that is not counted", minimum=1)
    epoch_steps: int = option(130, "steps in an epoch; the book's 1,045 rows make 130", minimum=1)
    epochs: int = option(5, "epochs that the whole training has", minimum=1)
    timeout: float = option(600.0, "seconds after which a contestant that loads or measures has failed", above=0)

    def check(self) -> None:
        _check_contestants(self.contestants, finetune_contestants.CONTESTANTS)

    def check_model(self, model: GPTConfig) -> None:
        """Raise ConfigError if the model has no room for what is measured with it."""
        if self.tokens > model.context_length:
            problem = f"more than model.context_length={model.context_length}"
            raise ConfigError("tokens", self.tokens, problem, "use fewer tokens or a model with a longer context")


@dataclass(kw_only=True)
class JobSuiteConfig:
    """What gpt2x-train costs a run beside its steps, and two runs at once beside the same two in turn."""

    _target_: str = "gpt2x.benchmark.job.JobSuite"
    name: str = option("job", "what the suite is called in the report")
    contestants: list[str] | None = option(
        None, f"who takes part; null: all, which are {', '.join(job_contestants.CONTESTANTS)}"
    )
    steps: int = option(200, "steps in a run", minimum=2)
    batch_size: int = option(16, "windows in a step", minimum=1)
    vocab_size: int = option(2048, "tokens in the vocabulary, which gpt2x-train learns once", minimum=257, maximum=65536)
    rounds: int = option(5, "measurements of each contestant, taken in turns, after a first one that is not counted", minimum=1)
    timeout: float = option(600.0, "seconds after which a contestant that has not ended has failed", above=0)

    def check(self) -> None:
        _check_contestants(self.contestants, job_contestants.CONTESTANTS)

    def check_model(self, model: GPTConfig) -> None:
        """Any model will do."""


@dataclass(kw_only=True)
class LoadSuiteConfig:
    """How long it takes, and how much memory, until a trained model is there."""

    _target_: str = "gpt2x.benchmark.load.LoadSuite"
    name: str = option("load", "what the suite is called in the report")
    contestants: list[str] | None = option(
        None, f"who takes part; null: all, which are {', '.join(load_contestants.CONTESTANTS)}"
    )
    rounds: int = option(5, "measurements of each contestant, taken in turns, after a first one that is not counted", minimum=1)
    timeout: float = option(600.0, "seconds after which a contestant that has not ended has failed", above=0)

    def check(self) -> None:
        _check_contestants(self.contestants, load_contestants.CONTESTANTS)

    def check_model(self, model: GPTConfig) -> None:
        """Any model will do."""


@dataclass(kw_only=True)
class TrainSuiteConfig:
    """How long a training step takes, from random weights."""

    _target_: str = "gpt2x.benchmark.train.TrainSuite"
    name: str = option("train", "what the suite is called in the report")
    contestants: list[str] | None = option(
        None, f"who takes part; null: all, which are {', '.join(train_contestants.CONTESTANTS)}"
    )
    batch_size: int = option(2, "rows in a step", minimum=1)
    tokens: int = option(256, "tokens in each row, which is also the model's context", minimum=1)
    vocab_size: int = option(50257, "tokens in the vocabulary, GPT-2's by default", minimum=2)
    steps: int = option(5, "steps that a process takes, after two that are not timed", minimum=1)
    rounds: int = option(5, "processes of each contestant, taken in turns, after a first one that is not counted", minimum=1)
    timeout: float = option(600.0, "seconds after which a contestant that has not ended has failed", above=0)

    def check(self) -> None:
        _check_contestants(self.contestants, train_contestants.CONTESTANTS)

    def check_model(self, model: GPTConfig) -> None:
        """Any model will do: its context is that of the rows."""


@dataclass(kw_only=True)
class TimeToLossSuiteConfig:
    """How long whole recipes take until the validation loss is low."""

    _target_: str = "gpt2x.benchmark.time_to_loss.TimeToLossSuite"
    name: str = option("time_to_loss", "what the suite is called in the report")
    experiments: list[str] = option(["shakespeare_char_cpu"], "the recipes, each an experiment of gpt2x-train")
    seeds: list[int] = option([1, 2, 3], "a run of each recipe with each of these seeds", minimum=0, maximum=2**32 - 1)
    target: float = option(1.898, "the validation loss to reach, in nats a token over the whole split", above=0)
    settings: list[str] = option([], "more settings of gpt2x-train for all runs, such as ['trainer.eval_every=50']")
    timeout: float = option(3600.0, "seconds after which a run that has not ended has failed", above=0)

    def check(self) -> None:
        for name in ("experiments", "seeds"):
            _check_list(name, getattr(self, name))

    def check_model(self, model: GPTConfig | None) -> None:
        """Raise ConfigError if a model is chosen: it would not be used."""
        if model is not None:
            raise ConfigError("experiments", self.experiments, "say which model; none is chosen beside", "leave model= out")


def _check_list(name: str, values: list) -> None:
    if not 0 < len(set(values)) == len(values):
        raise ConfigError(name, values, "must name at least one, and each once")


def _check_contestants(chosen: list[str] | None, known: dict) -> None:
    if chosen is None:
        return
    _check_list("contestants", chosen)
    for name in chosen:
        if name not in known:
            raise ConfigError("contestants", chosen, f"{name} is none of {', '.join(known)}")
