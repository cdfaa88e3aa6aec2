"""The generate command: a run's model continues a prompt, a file of them, or what is typed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from gpt2x.config.compose import CONFIG_DIR, change
from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import GenerateConfig
from gpt2x.generation.chat import chat
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.generator import TextGenerator
from gpt2x.generation.output import JsonLinesOutput, TextOutput, opened
from gpt2x.generation.prompts import Prompt, read_prompts
from gpt2x.training.load import load_run


def generate(config: GenerateConfig) -> None:
    """Write what the model makes of the prompts to config.output. Raises UserError for what the user can mend."""
    device = instantiate(config.device)
    if config.interactive:
        with device.autocast():
            interact(config, load(config, device))
        return
    prompts = [Prompt("\n" if config.prompt is None else config.prompt)]
    if config.prompt_file is not None:
        prompts = read_prompts(config.prompt_file)
    with opened(config.output) as write, device.autocast():
        generator = load(config, device)
        if config.format == "text":
            output = TextOutput(write, prompts=len(prompts), samples=config.sampling.samples)
        else:
            output = JsonLinesOutput(write, logprobs=config.sampling.top_logprobs is not None)
        for batch, seed in batches(prompts, config):
            texts = [prompt.text for prompt in batch]
            completions = generator.generate(texts, sampling=config.sampling, seed=seed, on_text=output.on_text(batch))
            for index, completion in enumerate(completions):
                output.add(batch[index // config.sampling.samples], completion, seed)
            if any(completion.finish == "interrupted" for completion in completions):
                raise KeyboardInterrupt


def load(config: GenerateConfig, device) -> TextGenerator:
    run = load_run(config.checkpoint, config.which)
    return TextGenerator(run.model.to(device.torch_device), run.tokenizer)


def batches(prompts: list[Prompt], config: GenerateConfig) -> Iterator[tuple[list[Prompt], int]]:
    """The prompts in their order, generation.batch_size texts at a time, with the seed that a batch has in common."""
    size = max(1, config.generation.batch_size // config.sampling.samples)
    for seed, group in itertools.groupby(prompts, lambda prompt: config.seed if prompt.seed is None else prompt.seed):
        while batch := list(itertools.islice(group, size)):
            yield batch, seed


def interact(config: GenerateConfig, generator: TextGenerator) -> None:
    """The interactive mode; its settings change as those of the command line do."""

    def changed(sampling: SamplingConfig, override: str) -> SamplingConfig:
        return change("generate", dataclasses.replace(config, sampling=sampling), override).sampling

    chat(
        generator,
        sampling=config.sampling,
        seed=config.seed,
        change=changed,
        presets=sorted(path.stem for path in (CONFIG_DIR / "sampling").glob("*.yaml")),
        history=Path(config.paths.cache) / "chat_history",
    )
