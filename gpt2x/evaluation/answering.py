"""Many prompts answered by a model, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpt2x.generation.config import SamplingConfig

Answerer = Callable[[list[str], SamplingConfig, int], list[tuple[str, str]]]
"""Prompts, settings of sampling and a seed in; of each prompt the model's text and why it ended (`Completion.finish`) out."""


def answered(
    prompts: Sequence[str], answer: Answerer, sampling: SamplingConfig, *, batch_size: int, seed: int = 1
) -> list[tuple[str, str]]:
    """What `answer` gives for each prompt, in their order; those of about one length are answered together."""
    from tqdm import tqdm

    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: dict[int, tuple[str, str]] = {}
    with tqdm(total=len(prompts), unit="answer", desc="answering", disable=None) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            answers |= zip(batch, answer([prompts[i] for i in batch], sampling, seed), strict=True)
            bar.update(len(batch))
    return [answers[i] for i in range(len(prompts))]
