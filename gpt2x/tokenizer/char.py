"""One token a character."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from gpt2x.tokenizer.base import Tokenizer, TokenizerError


class UnknownCharacterError(TokenizerError):
    """Text with characters that a CharTokenizer does not know.

    `characters` are the different ones in order of appearance, `position` is the index of the first in the text.
    """

    def __init__(self, text: str, unknown: np.ndarray, known: str):
        """`unknown`: indices into `text` of the unknown characters, shape (n,), ascending."""
        self.position = int(unknown[0])
        self.characters = "".join(dict.fromkeys(text[i] for i in unknown))
        listed = ", ".join(f"{_describe(c)} at position {text.index(c)}" for c in self.characters[:5])
        more = f" and {len(self.characters) - 5} others" if len(self.characters) > 5 else ""
        alphabet = repr(known) if len(known) <= 200 else f"{known[:200]!r} and {len(known) - 200} more"
        super().__init__(
            f"unknown to this character tokenizer: {listed}{more} (in all {len(unknown)} of {len(text)} characters)\n"
            f"  It knows the {len(known)} characters of its corpus: {alphabet}\n"
            "  Leave the unknown ones out, train on a corpus that has them, or use tokenizer=bpe or tokenizer=gpt2, "
            "which can encode any text."
        )


class CharTokenizer(Tokenizer):
    """The characters (Unicode code points) of a corpus in the order of their code points, then end-of-text."""

    kind = "char"

    def __init__(self, characters: str):
        """`characters`: each one once, in the order of their code points."""
        if list(characters) != sorted(set(characters)):
            raise ValueError("characters must be sorted, each once")
        self.characters = characters
        super().__init__(character.encode("utf-8") for character in characters)

    @classmethod
    def from_corpus(cls, texts: Iterable[str]) -> CharTokenizer:
        """The characters that occur in `texts`.

        Give it the whole corpus, not the training split alone: a character first seen in the
        validation split could not be encoded. Raises TokenizerError if there is no character at all.
        """
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        if not characters:
            raise TokenizerError("the corpus is empty: there is no character to make a token of")
        return cls("".join(sorted(characters)))

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`: int32, shape (len(text),). Raises UnknownCharacterError for one not in the corpus."""
        ids = self._id_of[_code_points(text)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            raise UnknownCharacterError(text, unknown, self.characters)
        return ids

    @cached_property
    def _id_of(self) -> np.ndarray:
        """Code point -> id, -1 for unknown: int32, shape (0x110000,). 4 MB buy an `encode` without a Python loop."""
        table = np.full(0x110000, -1, dtype=np.int32)
        table[_code_points(self.characters)] = np.arange(len(self.characters))
        return table

    def to_record(self) -> dict[str, Any]:
        return {"characters": self.characters}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> CharTokenizer:
        return cls("".join(record["characters"]))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _describe(character: str) -> str:
    name = unicodedata.name(character, "")
    return f"{character!r} (U+{ord(character):04X}{' ' if name else ''}{name})"
