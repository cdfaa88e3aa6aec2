"""The generate command: a run's model continues prompts, answers instructions or classifies texts, given, from a file or
typed."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from gpt2x.config.compose import CONFIG_DIR, change
from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import GenerateConfig
from gpt2x.data.table import refuse
from gpt2x.errors import UserError
from gpt2x.generation.chat import chat
from gpt2x.generation.classify import Item, classify_typed, predictions, read_items, writer
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.controls import Controls
from gpt2x.generation.generator import TextGenerator
from gpt2x.generation.output import JsonLinesOutput, TextOutput, opened
from gpt2x.generation.prompts import Prompt, called, read_prompts
from gpt2x.model.prepared import ready
from gpt2x.training.load import LoadedRun, load_run

log = logging.getLogger(__name__)


def generate(config: GenerateConfig) -> None:
    """Do with the run's model what its task is, and write what is made to config.output.

    Raises UserError for what the user can mend.
    """
    kind = config.trained().task.data_kind
    if kind == "table":
        classify(config)
    else:
        write_texts(config, instructions=kind == "instructions")


def load(config: GenerateConfig) -> tuple[LoadedRun, Callable[[], AbstractContextManager]]:
    """The run with its model prepared for use, and the context to use it in."""
    device = instantiate(config.device)
    run = load_run(config.checkpoint, config.which)
    return run, ready(run.model, device, weights=config.generation.weights, cache=config.paths.cache)


# -- texts: task=lm and task=instruct -----------------------------------------------------------------------------


def write_texts(config: GenerateConfig, *, instructions: bool) -> None:
    """Continue prompts; or, where the model was tuned to them, answer `instructions`."""
    prompts = []
    if config.prompt_file is not None:
        prompts = read_prompts(config.prompt_file, instructions=instructions)
    elif config.instruction is not None or config.input:
        prompts = [Prompt("", instruction=config.instruction or config.constant_instruction(), input=config.input)]
    elif not config.interactive:
        prompts = [Prompt("\n" if config.prompt is None else config.prompt)]
    run, computing = load(config)
    settings = dataclasses.asdict(config.generation)
    del settings["weights"], settings["batch_size"]
    generator = TextGenerator(run.model, run.tokenizer, **settings)
    if config.interactive:
        with computing():
            interact(config, generator, run if instructions else None)
        return
    sampling = config.sampling
    for i, prompt in enumerate(prompts):  # one that cannot be used is told before any is
        try:
            if prompt.instruction is not None:
                prompts[i] = dataclasses.replace(prompt, text=ask(run, prompt.instruction, prompt.input, sampling, prompt.id))
            generator.encode(prompts[i].text)
        except UserError as error:
            if config.prompt_file is None:
                raise
            raise UserError(f"prompt {prompt.id}: {error}") from None
    with opened(config.output) as write:
        if config.made_format == "text":
            output = TextOutput(write, prompts=len(prompts), samples=sampling.samples)
        else:
            wanted = sampling.top_logprobs is not None
            output = JsonLinesOutput(write, token_text=(lambda token: generator.tokenizer.decode([token])) if wanted else None)
        with computing():
            for batch, samples in _batches(prompts, sampling, config.generation.batch_size):
                seeds = [config.seed if prompt.seed is None else prompt.seed for prompt in batch]
                completions = generator.generate(
                    [prompt.text for prompt in batch],
                    sampling=sampling,
                    seed=seeds,
                    samples=samples,
                    on_text=output.on_text(batch),
                )
                for index, completion in enumerate(completions):
                    if completion.tokens or completion.finish != "interrupted":
                        output.add(batch[index // len(samples)], completion, seeds[index // len(samples)])
                if any(completion.finish == "interrupted" for completion in completions):
                    raise KeyboardInterrupt


def ask(run: LoadedRun, instruction: str, input: str, sampling: SamplingConfig, id: str | int = 1) -> str:
    """The prompt that the run's template makes of an instruction; where its input must be cut, that is told."""
    context, room = run.model.context_length, sampling.max_new_tokens
    prompt = run.task.prompt_with_room(instruction, input, context_length=context, max_new_tokens=room)
    if prompt != run.task.prompt(instruction, input):
        log.warning("prompt %s: the input is too long for the model's context of %d tokens, and its end is cut", id, context)
    return prompt


def _batches(prompts: list[Prompt], sampling: SamplingConfig, size: int) -> Iterator[tuple[list[Prompt], range]]:
    """Prompts, and which of their samples to make: about `size` texts at a time. One beam search makes all its samples."""
    each = range(sampling.samples)
    n = max(1, size // len(each))
    for i in range(0, len(prompts), n):
        step = len(each) if sampling.beams > 1 else size
        for start in range(0, len(each), step):
            yield prompts[i : i + n], each[start : start + step]


def interact(config: GenerateConfig, generator: TextGenerator, run: LoadedRun | None) -> None:
    """The interactive mode; its settings change as those of the command line do. `run` makes prompts of instructions."""

    def changed(sampling: SamplingConfig, override: str) -> SamplingConfig:
        new = change("generate", dataclasses.replace(config, sampling=sampling), override).sampling
        Controls.from_config(new, generator.tokenizer)  # a token that there is not is refused now
        return new

    chat(
        generator,
        sampling=config.sampling,
        seed=config.seed,
        change=changed,
        presets=sorted(path.stem for path in (CONFIG_DIR / "sampling").glob("*.yaml")),
        history=_history(config),
        ask=None if run is None else functools.partial(ask, run),
    )


def _history(config: GenerateConfig) -> Path:
    return Path(config.paths.cache) / "chat_history"


# -- classes: task=classifier -------------------------------------------------------------------------------------


def classify(config: GenerateConfig) -> None:
    """Tell the classes of texts; what cannot be classified is told before anything is."""
    items = []
    if config.prompt_file is not None:
        items = read_items(config.prompt_file, config.text_column)
    elif config.prompt is not None:
        items = [Item(config.prompt, 1, {config.text_column: config.prompt})]
    run, computing = load(config)
    batch_size = config.generation.batch_size

    def predict(texts: list[str]) -> np.ndarray:
        with computing():
            return run.task.predict(run.model, texts, batch_size)

    if config.interactive:
        classify_typed(predict, run.task.labels, _history(config))
        return
    _check_texts(config, items, run)
    with opened(config.output) as write:
        add = writer(config.made_format, write, items, run.task.labels)
        in_file = config.output is not None
        for item, probabilities in predictions(predict, items, batch_size=batch_size, show_progress=in_file):
            add(item, probabilities)


def _check_texts(config: GenerateConfig, items: list[Item], run: LoadedRun) -> None:
    """Refuse texts that cannot be tokenized; tell how many are too long to be read whole."""
    room, cut, faults = run.task.room(run.model.gpt.context_length), 0, defaultdict(list)
    for item in items:
        try:
            cut += len(run.tokenizer.encode(item.text)) > room
        except UserError as error:
            if config.prompt_file is None:
                raise
            faults["cannot be tokenized"].append(f"line {item.line}: {error}")
    refuse(called(config.prompt_file), faults)
    if cut:
        log.warning("%s of %s texts are longer than %d tokens; their ends are not read", f"{cut:,}", f"{len(items):,}", room)
