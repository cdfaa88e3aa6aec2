"""A stand-in for the engine, for this branch alone: one text after another, by gpt2x/generation/sampling.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from gpt2x.generation import sampling as sampler
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.text import TextStream


@dataclass
class Completion:
    prompt: str
    text: str
    tokens: list[int]
    finish: str
    sample: int
    logprobs: list = field(default_factory=list)


class TextGenerator:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def generate(
        self, prompts: list[str], *, sampling: SamplingConfig, seed: int, on_text: Callable[[int, str], None] | None = None
    ) -> list[Completion]:
        done: list[Completion] = []
        for prompt in prompts:
            for sample in range(sampling.samples):
                done.append(self._one(prompt, len(done), sample, sampling, seed, on_text or (lambda index, text: None)))
                if done[-1].finish == "interrupted":
                    return done
        return done

    def _one(self, prompt, index, sample, sampling, seed, on_text) -> Completion:
        stream, made, finish = TextStream(self.tokenizer, sampling.stop), [], "length"
        tokens = sampler.generate(
            self.model,
            sampler.encode_prompt(self.tokenizer, prompt),
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            end_of_text=self.tokenizer.end_of_text,
            generator=torch.Generator().manual_seed(seed + sample),
        )
        try:
            for token in tokens:
                made.append(token)
                if text := stream.feed(token):
                    on_text(index, text)
                if stream.stopped:
                    finish = "stop"
                    break
            else:
                finish = "length" if len(made) == sampling.max_new_tokens else "end_of_text"
        except KeyboardInterrupt:
            finish = "interrupted"
        if text := stream.close():
            on_text(index, text)
        return Completion(prompt, stream.text, made, "stop" if stream.stopped else finish, sample)
