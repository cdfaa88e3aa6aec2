"""From a prompt to tokens, one after another, each chosen from the model's logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gpt2x.tokenizer.base import Tokenizer, TokenizerError


def keep_top_k(logits_V: Tensor, k: int) -> Tensor:
    """All but the k largest logits become -inf: exactly k stay, of equal ones those with the lower id (Fan et al., 2018)."""
    if k >= logits_V.shape[-1]:
        return logits_V
    kept = logits_V.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.full_like(logits_V, float("-inf")).scatter(-1, kept, logits_V.gather(-1, kept))


def sample_token(
    logits_V: Tensor, *, temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> int:
    """One token id drawn from logits (V,).

    Temperature 0 takes the largest logit (of equal ones the lowest id). Otherwise top-k is applied first, then the
    logits are divided by `temperature`, and the token is drawn from their softmax with `generator`.
    """
    logits_V = logits_V.double().cpu()  # in float32 a tiny temperature would divide zero by zero
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None:
        logits_V = keep_top_k(logits_V, top_k)
    # Subtracting the maximum first keeps tiny temperatures from overflowing to infinity minus infinity.
    probabilities = torch.softmax((logits_V - logits_V.max()) / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The token ids to start from: those of `prompt`, or end-of-text where there are none.

    A prompt of white space alone, such as the default line end, is no reason to fail where a character
    tokenizer does not know it. Raises TokenizerError if it does not know another character.
    """
    try:
        return tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text]
    except TokenizerError:
        if prompt.strip():
            raise
        return [tokenizer.end_of_text]


@torch.inference_mode()
def generate(
    model: nn.Module,
    tokens: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    end_of_text: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that continue `tokens` (at least one), each as soon as it is chosen.

    Stops early at `end_of_text`, which is not yielded. Only the last `context_length` tokens are looked at.
    """
    device = next(model.parameters()).device
    tokens = list(tokens)
    for _ in range(max_new_tokens):
        window = torch.tensor([tokens[-model.context_length :]], device=device)
        logits_V = model.logits(model.hidden(window)[0, -1])
        token = sample_token(logits_V, temperature=temperature, top_k=top_k, generator=generator)
        if token == end_of_text:
            return
        tokens.append(token)
        yield token
