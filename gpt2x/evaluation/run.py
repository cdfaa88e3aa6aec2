"""The evaluate command: a trained model is measured, and the numbers are printed and written."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2x.config.instantiate import instantiate
from gpt2x.config.job import new_folder
from gpt2x.config.option import ConfigError, show
from gpt2x.config.schema import KINDS, EvaluateConfig
from gpt2x.data.config import SPLITS
from gpt2x.device import Device
from gpt2x.evaluation.answering import Answerer
from gpt2x.evaluation.config import ClassificationConfig, RougeConfig, SamplesConfig
from gpt2x.evaluation.judge.answers import Answer
from gpt2x.evaluation.judge.companions import reference_losses
from gpt2x.evaluation.judge.config import JudgedConfig, JudgementConfig
from gpt2x.evaluation.judge.evaluation import Answering
from gpt2x.evaluation.output import add_row, read_rows, writing
from gpt2x.files import shown, write_atomic
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.generator import TextGenerator
from gpt2x.model.gpt import GPT
from gpt2x.model.prepared import ready
from gpt2x.tokenizer.base import Tokenizer
from gpt2x.training.load import LoadedRun, load_run
from gpt2x.training.run_folder import versions

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Print the result of `config.evaluation`, write it to `config.output`, add it to `config.table` and return it.

    Raises UserError for what the user can mend.
    """
    for name, path in (("output", config.output), ("table", config.table)):
        if path is not None and Path(path).is_dir():
            raise ConfigError(name, path, "is a folder", "name a file in it")
    if config.table is not None:
        with writing("table", config.table):
            read_rows(config.table, "checkpoint")  # what is wrong with it is told before the work, not after
    found = measure(config)
    print(found)
    result = found.about | found.numbers | {"versions": versions()}
    if config.output is not None:
        with writing("output", config.output):
            write_atomic(config.output, json.dumps(result, indent=2) + "\n")
    if config.table is not None:
        row = {"checkpoint": ""} | dict(_flat(found.about | found.numbers))  # its first column, whatever was measured
        with writing("table", config.table):
            add_row(config.table, {k: v for k, v in row.items() if not isinstance(v, list)})
    return result


@dataclass(frozen=True)
class Measured:
    """What an evaluation found: what was measured, the numbers, a table of them as text where there is one, and whether that
    says everything. As a text it is what is printed."""

    about: dict[str, Any]
    numbers: dict[str, Any]
    text: str | None
    compact: bool

    def __str__(self) -> str:
        if self.compact:
            return self.text or ""
        rows = _flat(self.about if self.text else self.about | self.numbers)
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {_shown(value)}" for name, value in rows]
        return "\n".join([*lines, *(["", self.text] if self.text else [])])


def measure(config: EvaluateConfig) -> Measured:
    """Do what `config.evaluation` says.

    An evaluation is made of what it asks of the model (see `_asked`). Its `evaluate(corpus, split)` gives the numbers, and
    `describe(numbers)`, where it has one, a table of them; where it is `compact`, nothing else is worth telling. A judge's
    takes answers instead (see `_judge_answers`), and where they are judged already no model is needed.
    """
    if isinstance(config.evaluation, JudgedConfig):
        judged = instantiate(config.evaluation, config.answers or config.checkpoint, config.against)
        numbers = judged.evaluate()
        about = {"checkpoint": config.checkpoint, "answers": config.answers, "against": config.against}
        return Measured(about, numbers, judged.describe(numbers), compact=False)
    device = instantiate(config.device)
    if isinstance(config.evaluation, JudgementConfig):
        return _judge_answers(config, device)
    run = load_run(config.checkpoint, config.which)
    _fits(config, run)
    corpus, split = _corpus(config, run)
    autocast = _ready(config, run, device)
    arguments, more = _asked(config, run, device, autocast)
    evaluation = instantiate(config.evaluation, *arguments, **more)
    numbers = evaluation.evaluate(corpus, split)
    text = evaluation.describe(numbers) if hasattr(evaluation, "describe") else None
    return Measured(_about(config, run, split, device), numbers, text, getattr(evaluation, "compact", False))


def _judge_answers(config: EvaluateConfig, device: Device) -> Measured:
    """Have the answers of a run, or of a file, judged, maybe beside those of another one to the same questions."""
    folder = config.evaluation.folder
    if folder is None:
        folder = new_folder(str(Path(config.paths.outputs) / "judged" / time.strftime("%Y-%m-%d_%H-%M-%S")))
    judge = instantiate(config.judge, cache=Path(config.paths.cache) / "judge")
    evaluation = instantiate(replace(config.evaluation, folder=str(folder)), judge)
    try:
        return _judged(config, device, judge, evaluation)
    finally:
        if config.evaluation.folder is None:
            with contextlib.suppress(OSError):  # it is not empty; what failed before anything was written leaves no folder
                folder.rmdir()


def _judged(config: EvaluateConfig, device: Device, judge: Any, evaluation: Any) -> Measured:
    """The same by `judge`, which `evaluation` asks."""
    if config.answers is not None:
        about = {"answers": config.answers}
        answers = evaluation.read(config.answers, "answers")
    else:
        run = load_run(config.checkpoint, config.which)
        _fits(config, run)
        corpus, split = _corpus(config, run)
        about = _about(config, run, split, device)
        judge.server.version()  # whether it is there, before all answers are made, not after
        asked = [Answer(r.line, r.instruction, r.input, r.outputs[0], "") for r in corpus.splits[split]]
        answers = evaluation.answer(_answering(config, run, device), asked[: config.evaluation.max_examples], "answers")
    against = None
    if config.against is not None and Path(config.against).is_dir():
        run = load_run(config.against)
        _fits(replace(config, data=None), run, f"against={config.against}")
        against = evaluation.answer(_answering(config, run, device), answers, "against")
    elif config.against is not None:
        against = evaluation.read(config.against, "against")
    numbers = evaluation.evaluate(answers, against)
    about |= {"against": config.against, "judge": judge.name, "folder": shown(evaluation.folder)}
    return Measured(about, numbers, evaluation.describe(numbers), compact=False)


def _about(config: EvaluateConfig, run: LoadedRun, split: str, device: Device) -> dict[str, Any]:
    """What is measured, for the record."""
    weights, precision = config.generation.weights, config.device.precision
    return {
        "checkpoint": config.checkpoint,
        "step": run.step,
        "data": (config.data or run.config.data).name,
        "split": split,
        "weights": weights if precision == "fp32" else precision,  # bf16 products keep bf16 weights
        "precision": precision,
        "device": str(device),
    }


def _ready(config: EvaluateConfig, run: LoadedRun, device: Device) -> Callable:
    """Make the run's model ready on the device; gives the context to compute in."""
    weights, precision = config.generation.weights, config.device.precision
    generates = isinstance(config.evaluation, (SamplesConfig, JudgementConfig))
    if (weights, precision) == ("fp32", "fp32") and not generates:  # as in training, so that the numbers are the same
        run.model.to(device.torch_device)
        return device.autocast
    return ready(run.model, device, weights=weights, cache=config.paths.cache)


def _fits(config: EvaluateConfig, run: LoadedRun, named_by: str | None = None) -> None:
    """Raise ConfigError if the evaluation is none of this model, or none of these data; a setting named the run."""
    kind, task = config.evaluation.data_kind, run.config.task.data_kind
    data = (config.data or run.config.data).kind
    mine = config.evaluation.choice
    samples, named = mine == "samples", {"text": "perplexity", "table": "classification", "instructions": "rouge"}
    named[kind] = mine
    if (task != kind and (samples or "table" in (task, kind))) or (task, kind) == ("text", "instructions"):
        what = {"text": "a language model", "table": "a classifier", "instructions": "tuned to instructions"}[task]
        problem = f"the model of {named_by or f'checkpoint={config.checkpoint}'} is {what}"
        raise ConfigError("evaluation", mine, problem, f"use evaluation={named[task]}")
    if data != kind:
        problem = f"needs {KINDS[kind]}, and data={(config.data or run.config.data).name} is {KINDS[data]}"
        raise ConfigError("evaluation", mine, problem, f"use evaluation={named[data]}, or other data")


def _asked(config: EvaluateConfig, run: LoadedRun, device: Device, autocast: Callable) -> tuple[tuple, dict[str, Any]]:
    """What the evaluation wants to know of the model: the arguments that it is made with.

    Perplexity and samples want the model and its tokenizer, `autocast()`, the context to compute in, and the one
    `reference()`, the model in fp32, the other the settings of sampling and `load_judge(path)`, which gives another model and
    its tokenizer; the other two want to know what the model predicts or answers.
    """
    task = run.task
    if isinstance(config.evaluation, SamplesConfig):
        more = {"autocast": autocast, "sampling": config.sampling, "load_judge": functools.partial(_judge, device=device)}
        return (run.model, run.tokenizer), more
    if isinstance(config.evaluation, ClassificationConfig):

        def predict(texts: Sequence[str]) -> np.ndarray:
            with autocast():
                return task.predict(run.model, texts, config.evaluation.batch_size)

        return (predict,), {"class_weights": task.weights.tolist()}
    if isinstance(config.evaluation, RougeConfig):
        return (_answer(run, autocast), _prompt(config, run)), {}

    def reference() -> GPT:
        which = config.which if run.step is None else str(run.step)
        return load_run(config.checkpoint, which).model.to(device.torch_device)

    return (run.model, run.tokenizer), {"autocast": autocast, "reference": reference}


def _answer(run: LoadedRun, autocast: Callable) -> Answerer:
    """How the run's model answers prompts."""
    generator = TextGenerator(run.model, run.tokenizer)

    def answer(prompts: list[str], sampling: SamplingConfig, seed: int) -> list[tuple[str, str]]:
        with autocast():
            made = generator.generate(prompts, sampling=sampling, seed=seed)
        if any(completion.finish == "interrupted" for completion in made):
            raise KeyboardInterrupt
        return [(completion.text, completion.finish) for completion in made]

    return answer


def _prompt(config: EvaluateConfig, run: LoadedRun) -> Callable[[str, str], str]:
    """What the run's model is asked, with room for the answer."""
    room = {"context_length": run.model.context_length, "max_new_tokens": config.evaluation.max_new_tokens}
    return functools.partial(run.task.prompt_with_room, **room)


def _answering(config: EvaluateConfig, run: LoadedRun, device: Device) -> Answering:
    """The run's model as a judge's evaluation wants it."""
    autocast = _ready(config, run, device)
    size = config.evaluation.batch_size
    losses = functools.partial(reference_losses, run.model, run.tokenizer, batch_size=size, autocast=autocast)
    return Answering(_prompt(config, run), _answer(run, autocast), losses)


def _judge(path: str, device: Device) -> tuple[GPT, Tokenizer]:
    """The model of another run that makes text, in fp32, and its tokenizer."""
    run = load_run(path)
    if run.config.task.data_kind == "table":
        raise ConfigError("evaluation.judge", path, "is a classifier, which predicts no text", "name a run of task=lm")
    return run.model.to(device.torch_device), run.tokenizer


def _corpus(config: EvaluateConfig, run: LoadedRun) -> tuple[Any, str]:
    """The data to evaluate on, and the split that is meant, which has something in it."""
    corpus = instantiate(config.data or run.config.data, cache=config.paths.cache, mirror=config.paths.mirror)
    judged = isinstance(config.evaluation, JudgementConfig) and corpus.splits["test"]
    split = config.split or ("test" if judged else "val")
    if not corpus.splits[split]:
        others = " or ".join(f"split={split}" for split in SPLITS if corpus.splits[split])
        remedy = f"use {others}, or cut the data another way, such as data=... data.{split}_fraction=0.1"
        raise ConfigError("split", split, f"data={corpus.name} has nothing in it", remedy)
    if config.data is None and corpus.fingerprint != run.checkpoint.state["identity"]["corpus"]:
        log.warning("data=%s has changed since the run was trained on it", corpus.name)
    labels = run.task.about.get("labels")
    if labels is not None and corpus.about["labels"] != labels:
        problem = f"its labels are {show(corpus.about['labels'])}, the model's are {show(labels)}"
        raise ConfigError("data", corpus.name, problem, f"data.labels={show(labels)} names them in the model's order")
    return corpus, split


def _flat(numbers: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested numbers by dotted names, without those that there are none of."""
    rows = []
    for name, value in numbers.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            rows.append((prefix + name, value))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
