"""Instruction tuning: language modelling on the response to a prompt.

Records come from gpt2x/data/instructions.py, a template makes prompts of them, and examples (tokens and what is to be
predicted after each) go to gpt2x/data/examples.py, which makes batches of them.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2x.data.batch import IGNORED
from gpt2x.data.examples import Example, ExampleData
from gpt2x.data.instructions import InstructionCorpus, Record
from gpt2x.errors import UserError
from gpt2x.task.lm import LanguageModeling
from gpt2x.task.template import load_template, parse_template
from gpt2x.tokenizer.base import Tokenizer

log = logging.getLogger(__name__)


class InstructionTuning(LanguageModeling):
    """Cross-entropy over every next token of the responses: see InstructionTuningConfig for the settings.

    Prompt and response are tokenized apart, so that a model that is given the prompt alone sees the very tokens it was
    trained on; end-of-text follows the response and is learned. Of several outputs the first is the one to learn.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        about: dict[str, Any],
        *,
        template: str,
        mask_prompt: bool,
        too_long: str,
        packing: bool,
        answers: int,
    ):
        super().__init__(tokenizer, about)
        if "template" in self.about:  # as it was when the model was trained, wherever the file is now
            self.template = parse_template(self.about["template"], f"task.template={template}")
        else:
            self.template = load_template(template)
            self.about["template"] = self.template.source
        self.mask_prompt, self.too_long, self.packing, self.answers = mask_prompt, too_long, packing, answers
        self.shown: list[Record] = []

    def batches(self, corpus: InstructionCorpus, *, context_length: int, seed: int) -> ExampleData:
        """Batches of all splits; those of training may be packed. `seed` fixes their order."""
        splits = {split: self.examples(records, context_length, split) for split, records in corpus.splits.items()}
        if not splits["train"]:
            longest = f"No response fits behind its prompt in model.context_length={context_length}"
            raise UserError(f"data={corpus.name}: nothing is left to train on\n  {longest}: use a longer one.")
        fitting = (r for r in corpus.splits["val"] if self._example(r, context_length)[0] is not None)
        self.shown = list(itertools.islice(fitting, self.answers))
        if self.packing:
            splits["train"] = pack(splits["train"], context_length)
        return ExampleData(splits, seed=seed, name=corpus.name, title=str(corpus), **corpus.batching)

    def examples(self, records: Sequence[Record], context_length: int, split: str) -> list[Example]:
        """One example a record, in their order, each of at most `context_length` tokens; what that costs is logged."""
        made, cut = [], 0
        for record in records:
            example, shortened = self._example(record, context_length)
            if example is not None:
                made.append(example)
                cut += shortened
        total = len(records)
        if cut or len(made) < total:
            log.info(
                "length   of %s %s examples %s were cut (task.too_long=%s) and %s dropped to fit model.context_length=%d",
                *(f"{total:,}", split, f"{cut:,}", self.too_long, f"{total - len(made):,}", context_length),
            )
        if len(made) < total / 2:
            log.warning(
                "most of the %s examples do not fit model.context_length=%d: use a model with a longer one, a shorter template "
                "(task.template=phi3), or task.too_long=cut_input",
                split,
                context_length,
            )
        return made

    def prompt(self, instruction: str, input: str = "", *, max_tokens: int | None = None) -> str:
        """The prompt that a response follows; with `max_tokens`, the input's end is cut where it would be longer.

        Raises UserError if even a prompt without its input would be.
        """
        prompt = self._fitting_prompt(instruction, input, max_tokens)
        if prompt is None:
            length = len(self.tokenizer.encode(self.template.render(instruction, input)))
            raise UserError(f"the prompt has {length:,} tokens, which cannot be cut to {max_tokens:,}: shorten the instruction")
        return prompt

    def prompt_with_room(self, instruction: str, input: str, *, context_length: int, max_new_tokens: int) -> str:
        """The prompt that leaves room in the context for an answer of `max_new_tokens`, or for half the context if that is
        less: where it would not, the input's end is cut. An instruction too long for that may fill the context; a longer
        one is a UserError."""
        try:
            return self.prompt(instruction, input, max_tokens=context_length - min(max_new_tokens, context_length // 2))
        except UserError:
            return self.prompt(instruction, input, max_tokens=context_length)

    def examples_to_show(self) -> list[dict[str, str]]:
        """The first `answers` validation records that fit the context."""
        return [
            {
                "prompt": self.template.render(record.instruction, record.input),
                "question": " ".join(filter(None, (record.instruction, record.input))),
                "reference": record.outputs[0],
            }
            for record in self.shown
        ]

    def _example(self, record: Record, context_length: int) -> tuple[Example | None, bool]:
        """The example, None if it must be dropped; and whether something of it was cut off."""
        prompt = self.tokenizer.encode(self.template.render(record.instruction, record.input))
        response = np.append(self.tokenizer.encode(record.outputs[0]), self.tokenizer.end_of_text)
        room = context_length + 1  # the last token is predicted, never read
        cut = len(prompt) + len(response) > room
        if cut and self.too_long == "drop":
            return None, cut
        if cut and self.too_long == "cut_input":
            text = self._fitting_prompt(record.instruction, record.input, room - len(response))
            if text is None:
                return None, cut
            prompt = self.tokenizer.encode(text)
        tokens = np.concatenate([prompt, response])[:room].astype(np.int64)
        if len(tokens) <= len(prompt):
            return None, cut
        targets = tokens[1:].copy()
        if self.mask_prompt:
            targets[: len(prompt) - 1] = IGNORED
        return Example(tokens[:-1], targets, weight=int((targets != IGNORED).sum())), cut

    def _fitting_prompt(self, instruction: str, input: str, max_tokens: int | None) -> str | None:
        """The prompt with as much of the input's beginning as fits into `max_tokens`; None if nothing of it would."""
        prompt, ids = self.template.render(instruction, input), None
        while max_tokens is not None and (excess := len(self.tokenizer.encode(prompt)) - max_tokens) > 0:
            ids = self.tokenizer.encode(input) if ids is None else ids
            ids = ids[: max(0, len(ids) - excess)]
            shorter = self.tokenizer.decode_bytes(ids).decode("utf-8", errors="ignore").rstrip()  # half a character at most
            if not shorter:
                return None
            prompt = self.template.render(instruction, shorter)
        return prompt


def pack(examples: list[Example], context_length: int) -> list[Example]:
    """Join examples, in their order, into rows of at most `context_length` tokens: each goes behind the last if it fits.

    `documents` of a row numbers its examples 0, 1, ... at their tokens.
    """
    rows: list[list[Example]] = []
    length = context_length
    for example in examples:
        if length + len(example.tokens) > context_length:
            rows.append([])
            length = 0
        rows[-1].append(example)
        length += len(example.tokens)
    return [
        Example(
            np.concatenate([example.tokens for example in row]),
            np.concatenate([example.target for example in row]),
            weight=sum(example.weight for example in row),
            documents=np.repeat(np.arange(len(row)), [len(example.tokens) for example in row]),
        )
        for row in rows
    ]
