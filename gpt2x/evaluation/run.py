"""The evaluate command: a trained model is measured, and the numbers are printed and written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from gpt2x.config.instantiate import instantiate
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import EvaluateConfig
from gpt2x.data.config import SPLITS
from gpt2x.data.text import TextCorpus
from gpt2x.errors import UserError
from gpt2x.files import write_atomic
from gpt2x.model.gpt import GPT
from gpt2x.model.prepared import ready
from gpt2x.training.load import LoadedRun, load_run
from gpt2x.training.run_folder import versions

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Print the result of `config.evaluation`, write it to `config.output` and return it.

    An evaluation is made of a model, its tokenizer, `autocast()`, the context to compute in, and `reference()`, the
    model in fp32. Its `evaluate(corpus, split)` gives the numbers. Raises UserError for what the user can mend.
    """
    if config.output is not None and Path(config.output).is_dir():
        raise ConfigError("output", config.output, "is a folder", "name a file in it")
    device = instantiate(config.device)
    run = load_run(config.checkpoint, config.which)
    weights, precision = config.generation.weights, config.device.precision
    if (weights, precision) == ("fp32", "fp32"):  # as in training, so that the numbers are the same
        model, autocast = run.model.to(device.torch_device), device.autocast
    else:
        model, autocast = ready(run.model, device, weights=weights, cache=config.paths.cache)

    def reference() -> GPT:
        return load_run(config.checkpoint, str(run.checkpoint.step)).model.to(device.torch_device)

    evaluation = instantiate(config.evaluation, model, run.tokenizer, autocast=autocast, reference=reference)
    numbers = evaluation.evaluate(_corpus(config, run), config.split)
    about = {
        "checkpoint": config.checkpoint,
        "step": run.checkpoint.step,
        "data": (config.data or run.config.data).name,
        "split": config.split,
        "weights": weights if precision == "fp32" else precision,  # bf16 products keep bf16 weights
        "precision": precision,
        "device": str(device),
    }
    result = about | numbers | {"versions": versions()}
    rows = _flat(about | numbers)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {_shown(value)}")
    if config.output is not None:
        try:
            write_atomic(config.output, json.dumps(result, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"output={config.output}: cannot be written ({error.strerror})") from error
    return result


def _corpus(config: EvaluateConfig, run: LoadedRun) -> TextCorpus:
    """The text to evaluate on, which has something in the split that is meant."""
    corpus = instantiate(config.data or run.config.data, cache=config.paths.cache, mirror=config.paths.mirror)
    if not corpus.splits[config.split]:
        others = " or ".join(f"split={split}" for split in SPLITS if corpus.splits[split])
        remedy = f"use {others}, or cut the text another way, such as data=... data.{config.split}_fraction=0.1"
        raise ConfigError("split", config.split, f"data={corpus.name} has no text in it", remedy)
    if config.data is None and corpus.fingerprint != run.checkpoint.state["identity"]["corpus"]:
        log.warning("the text of data=%s has changed since the run was trained on it", corpus.name)
    return corpus


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
