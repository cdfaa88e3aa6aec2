"""Text in, text out: prompts are tokenized, continued by the loop in decoding.py, and turned back into text as it grows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2x.errors import UserError
from gpt2x.generation.beam import beam_search
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.controls import Controls
from gpt2x.generation.decoding import Row, TokenLogprob, decode
from gpt2x.generation.text import TextStream
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.base import Tokenizer, TokenizerError


@dataclass(frozen=True)
class Completion:
    """What followed a prompt.

    text      the continuation alone, cut before a stop string
    tokens    its ids, those of a stop string included, end-of-text not
    finish    why it ended: "end_of_text", "stop" (a stop string), "length" (max_new_tokens), "context" (it is
              full), or "interrupted" (by Ctrl-C: all that was made until then is here)
    sample    which one of the prompt's samples, from 0; with beam search they are in order, best first
    logprobs  of each token, if asked for
    score     of beam search
    """

    prompt: str
    text: str
    tokens: list[int]
    finish: str
    sample: int
    logprobs: list[TokenLogprob] | None = None
    score: float | None = None


@dataclass
class _Making:
    """A completion on its way."""

    prompt: str
    sample: int
    stream: TextStream
    row: Row | None = None
    used: int = 0  # of the row's tokens
    finish: str | None = None

    def take(self, row: Row) -> str:
        """The text that the row's new tokens have brought; ends the row at a stop string."""
        self.row, pieces = row, []
        while self.used < len(row.history.new) and not self.stream.stopped:
            pieces.append(self.stream.feed(row.history.new[self.used]))
            self.used += 1
        if self.stream.stopped:
            row.finish = "stop"
        return "".join([*pieces, self._close(row.finish)])

    def interrupt(self) -> str:
        return self._close("interrupted")

    def _close(self, finish: str | None) -> str:
        if finish is None or self.finish is not None:
            return ""
        rest, self.finish = self.stream.close(), finish
        if self.stream.stopped:  # what was held back held a stop string
            self.finish = "stop"
        return rest

    def completion(self, with_logprobs: bool) -> Completion:
        tokens, logprobs = ([], []) if self.row is None else (self.row.history.new, self.row.logprobs)
        return Completion(
            self.prompt,
            self.stream.text,
            tokens[: self.used],
            self.finish,
            self.sample,
            logprobs[: self.used] if with_logprobs else None,
        )


class TextGenerator:
    """A model and its tokenizer, ready to continue texts. The settings are those of `decode`."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        cache: bool = True,
        past_context: str = "slide",
        prefill_chunk: int | None = None,
        lookup: int = 0,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.past_context, self.lookup = past_context, lookup
        self.reading = {"cache": cache, "past_context": past_context, "prefill_chunk": prefill_chunk}

    def generate(
        self,
        prompts: Sequence[str],
        *,
        sampling: SamplingConfig,
        seed: int | Sequence[int],
        samples: range | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Completion]:
        """The completions of all prompts, `sampling.samples` of each, one prompt's after another's.

        `samples` says which of the samples to make, where not all of them are to be made at once.
        `seed` is one for all prompts or one for each: the same prompt and seed give the same text in any company.
        `on_text(index, text)` is told each new piece of completion `index`, whole characters only, as it is made (beam
        search makes it all at the end). Raises UserError for a prompt that cannot be encoded or does not fit.
        """
        if not prompts:
            return []
        encoded = [self.encode(prompt) for prompt in prompts]
        controls = Controls.from_config(sampling, self.tokenizer)
        on_text = on_text or (lambda index, text: None)
        if sampling.beams > 1:
            return self._search(prompts, encoded, controls, sampling, on_text)
        samples, stop = samples or range(sampling.samples), _unescaped(sampling.stop)
        making = [_Making(prompt, sample, TextStream(self.tokenizer, stop)) for prompt in prompts for sample in samples]
        try:
            for rows in decode(
                self.model,
                encoded,
                controls=controls,
                max_new_tokens=sampling.max_new_tokens,
                seed=seed,
                samples=samples,
                end_of_text=self.tokenizer.end_of_text if sampling.stop_at_end_of_text else None,
                top_logprobs=sampling.top_logprobs,
                lookup=self.lookup,
                **self.reading,
            ):
                for row in rows:
                    index = row.prompt_index * len(samples) + samples.index(row.sample)
                    if piece := making[index].take(row):
                        on_text(index, piece)
        except KeyboardInterrupt:
            for index, text in enumerate(making):
                if piece := text.interrupt():
                    on_text(index, piece)
        return [text.completion(sampling.top_logprobs is not None) for text in making]

    def encode(self, prompt: str) -> list[int]:
        """The token ids to start from: those of `prompt`, or end-of-text where there are none.

        A prompt of white space alone, such as the default line end, is no reason to fail where a character tokenizer
        does not know it. Raises UserError if it does not know another character, or where the prompt does not fit.
        """
        try:
            tokens = self.tokenizer.encode(prompt).tolist() or [self.tokenizer.end_of_text]
        except TokenizerError:
            if prompt.strip():
                raise
            tokens = [self.tokenizer.end_of_text]
        if self.past_context == "stop" and len(tokens) > self.model.context_length:
            raise UserError(
                f"a prompt of {len(tokens):,} tokens does not fit the model's context of {self.model.context_length:,}\n"
                "  shorten it, or use generation.past_context=slide to go on from its end"
            )
        return tokens

    def _search(
        self,
        prompts: Sequence[str],
        encoded: list[list[int]],
        controls: Controls,
        sampling: SamplingConfig,
        on_text: Callable[[int, str], None],
    ) -> list[Completion]:
        done = []
        for prompt, tokens in zip(prompts, encoded, strict=True):
            found = beam_search(
                self.model,
                tokens,
                beams=sampling.beams,
                controls=controls,
                max_new_tokens=sampling.max_new_tokens,
                end_of_text=self.tokenizer.end_of_text if sampling.stop_at_end_of_text else None,
                length_penalty=sampling.length_penalty,
                **self.reading,
            )
            for sample, hypothesis in enumerate(found[: sampling.samples]):
                text = self.tokenizer.decode(hypothesis.tokens)
                if text:
                    on_text(len(done), text)
                done.append(Completion(prompt, text, hypothesis.tokens, hypothesis.finish, sample, score=hypothesis.score))
        return done


def _unescaped(texts: Sequence[str]) -> list[str]:
    """\\n and \\t as the characters they stand for, which a command line cannot hold otherwise; \\\\ is a backslash."""
    signs = {"n": "\n", "t": "\t", "\\": "\\"}
    return [re.sub(r"\\([nt\\])", lambda match: signs[match[1]], text) for text in texts]
