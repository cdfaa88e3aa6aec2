"""Settings of the sampling group, and of how the model computes when it generates."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config.option import ConfigError, option


@dataclass(kw_only=True)
class SamplingConfig:
    """How the next token is chosen from the model's distribution, and when a text ends.

    The settings stand in the order in which they are applied (controls.py). A token is named by text that is exactly
    one token (" the"), by its number (id:262) or as <|endoftext|>.
    """

    max_new_tokens: int = option(100, "tokens to generate at most", minimum=1)
    min_new_tokens: int = option(0, "tokens to generate before end-of-text may come", minimum=0)
    logit_bias: dict[str, float] = option(
        {}, 'a number to add to a token\'s logit, such as {" the": -2, id:262: 1.5}', minimum=-100, maximum=100
    )
    repetition_penalty: float = option(
        1.0,
        "above 1: tokens of the prompt and the text so far become less likely; positive logits are divided by it",
        minimum=0.01,
        maximum=100,
    )
    presence_penalty: float = option(
        0.0, "taken from the logit of each token that is in the text so far", minimum=-100, maximum=100
    )
    frequency_penalty: float = option(0.0, "the same, once for each time that the token is there", minimum=-100, maximum=100)
    no_repeat_ngram: int | None = option(None, "as many tokens in a row never come twice, the prompt included", minimum=1)
    banned: list[str] = option([], 'tokens that are never chosen, such as [" the", id:262]')
    temperature: float = option(
        1.0, "divides the logits; 0 takes the likeliest token (greedy), whatever top_k, top_p, min_p and typical_p", minimum=0
    )
    top_k: int | None = option(None, "sample only among the k likeliest tokens; null: among all", minimum=1)
    top_p: float | None = option(
        None, "sample only among the likeliest tokens whose probability together reaches p", above=0, maximum=1
    )
    min_p: float | None = option(
        None, "sample only among tokens that are at least as many times as likely as the likeliest", above=0, maximum=1
    )
    typical_p: float | None = option(
        None,
        "sample only among the tokens that surprise nearest to as much as is expected and whose probability reaches p",
        above=0,
        maximum=1,
    )
    stop: list[str] = option([], "a text ends where one of these strings appears, and without it; \\n is a line end, \\t a tab")
    stop_at_end_of_text: bool = option(True, "a text ends at the end-of-text token")
    samples: int = option(1, "texts to make of each prompt", minimum=1)
    beams: int = option(1, "more than 1: beam search for the likeliest text, keeping as many at each step", minimum=1)
    length_penalty: float = option(
        1.0,
        "beam search divides a text's log-probability by its length to the power of this; above 1 favours long ones",
        minimum=-10,
        maximum=10,
    )
    top_logprobs: int | None = option(
        None, "0: also give each token's log-probability; k: and the k likeliest tokens'; null: none", minimum=0
    )

    def check(self) -> None:
        """The rules between the settings."""
        if self.min_new_tokens > self.max_new_tokens:
            problem = f"must be at most max_new_tokens, which is {self.max_new_tokens}"
            raise ConfigError("min_new_tokens", self.min_new_tokens, problem)
        if "" in self.stop:
            raise ConfigError("stop", self.stop, "an empty string is everywhere", "leave it out")
        if self.beams == 1:
            if self.length_penalty != 1:
                problem = "is for beam search, which needs beams above 1"
                raise ConfigError("length_penalty", self.length_penalty, problem, "such as sampling=beam")
            if self.samples > 1 and self.temperature == 0:
                problem = "at temperature=0 they would all be the same"
                raise ConfigError("samples", self.samples, problem, "raise the temperature, or search: sampling=beam")
            return
        if self.temperature != 0:
            problem = f"beam search draws nothing: it needs temperature=0, not {self.temperature}"
            raise ConfigError("beams", self.beams, problem, "sampling=beam sets both")
        if self.stop:
            raise ConfigError(
                "stop", self.stop, "ends a text as it is made, and beam search compares whole ones", "leave it out"
            )
        if self.samples > self.beams:
            raise ConfigError("samples", self.samples, f"beam search finds at most as many texts as beams, {self.beams}")
        if self.top_logprobs is not None:
            problem = "cannot be given with beam search, whose choice is of whole texts"
            raise ConfigError("top_logprobs", self.top_logprobs, problem, "leave out one of the two")


@dataclass(kw_only=True)
class WeightsConfig:
    """What the weights of a trained model are kept as while it is used."""

    weights: str = option(
        "fp32",
        "what the weights are rounded to: bf16 and int8 are faster and cost some quality",
        choices=("fp32", "bf16", "int8"),
    )


@dataclass(kw_only=True)
class GenerationConfig(WeightsConfig):
    """How texts are computed; `weights` and `past_context` can change what they are, the others only how fast they come."""

    batch_size: int = option(8, "texts that are made at the same time; beam search takes one prompt at a time", minimum=1)
    cache: bool = option(True, "keep keys and values; false: compute the whole text anew for each token")
    past_context: str = option(
        "slide",
        "when the model's context is full: slide on with its last half, computed anew, or stop",
        choices=("slide", "stop"),
    )
    prefill_chunk: int | None = option(
        None, "tokens of a prompt computed at once; fewer need less memory; null: all", minimum=1
    )
    lookup: int = option(0, "tokens to guess from earlier in the text and check at once; 0: none", minimum=0)
