"""The generate command: a run's model continues a prompt, a file of them, or what is typed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from gpt2x.config.compose import CONFIG_DIR, change
from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import GenerateConfig
from gpt2x.errors import UserError
from gpt2x.generation.chat import chat
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.controls import Controls
from gpt2x.generation.generator import TextGenerator
from gpt2x.generation.output import JsonLinesOutput, TextOutput, opened
from gpt2x.generation.prompts import Prompt, read_prompts
from gpt2x.model.prepared import ready
from gpt2x.training.load import load_run


def generate(config: GenerateConfig) -> None:
    """Write what the model makes of the prompts to config.output. Raises UserError for what the user can mend."""
    if config.interactive:
        generator, computing = load(config)
        with computing:
            interact(config, generator)
        return
    prompts = [Prompt("\n" if config.prompt is None else config.prompt)]
    if config.prompt_file is not None:
        prompts = read_prompts(config.prompt_file)
    sampling = config.sampling
    generator, computing = load(config)
    for prompt in prompts:  # one that cannot be used is told before any is
        try:
            generator.encode(prompt.text)
        except UserError as error:
            if config.prompt_file is None:
                raise
            raise UserError(f"prompt {prompt.id}: {error}") from None
    with opened(config.output) as write:
        if config.format == "text":
            output = TextOutput(write, prompts=len(prompts), samples=sampling.samples)
        else:
            wanted = sampling.top_logprobs is not None
            output = JsonLinesOutput(write, token_text=(lambda token: generator.tokenizer.decode([token])) if wanted else None)
        with computing:
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


def _batches(prompts: list[Prompt], sampling: SamplingConfig, size: int) -> Iterator[tuple[list[Prompt], range]]:
    """Prompts, and which of their samples to make: about `size` texts at a time. One beam search makes all its samples."""
    each = range(sampling.samples)
    n = max(1, size // len(each))
    for i in range(0, len(prompts), n):
        step = len(each) if sampling.beams > 1 else size
        for start in range(0, len(each), step):
            yield prompts[i : i + n], each[start : start + step]


def load(config: GenerateConfig) -> tuple[TextGenerator, contextlib.AbstractContextManager]:
    """The model ready to generate, and the context to do so in."""
    device = instantiate(config.device)
    run = load_run(config.checkpoint, config.which)
    settings = dataclasses.asdict(config.generation)
    weights, _ = settings.pop("weights"), settings.pop("batch_size")
    autocast = ready(run.model, device, weights=weights, cache=config.paths.cache)
    return TextGenerator(run.model, run.tokenizer, **settings), autocast()


def interact(config: GenerateConfig, generator: TextGenerator) -> None:
    """The interactive mode; its settings change as those of the command line do."""

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
        history=Path(config.paths.cache) / "chat_history",
    )
