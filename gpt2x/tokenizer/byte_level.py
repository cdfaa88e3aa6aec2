"""Byte-pair encoding of any text with a given vocabulary: what GPT-2's tokenizer and ours have in common.

Text is first cut into words (PATTERN). A word's UTF-8 bytes are then joined pair by pair, always the
pair whose joined bytes have the lowest id, until no pair makes a token. Starting from bytes, there is
no text that cannot be encoded. (Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners", section 2.2; the joining is tiktoken's, in Rust.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from gpt2x.tokenizer.base import Tokenizer

# GPT-2's words: an English contraction's ending; letters, digits or other signs, each with at most one
# space before them; white space, of which the last character is left to the word that follows.
# `\s++$` adds nothing but speed, and saves the regex engine's stack: it takes trailing space in one go.
PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s++$|\s+(?!\S)|\s+"


class ByteLevelTokenizer(Tokenizer):
    """A tokenizer whose tokens are the 256 bytes, in any order, and joins of two earlier tokens.

    Text must be Unicode: a lone surrogate, which no UTF-8 file holds, is read as U+FFFD.
    """

    rule = PATTERN

    def __init__(self, tokens: Iterable[bytes]):
        super().__init__(tokens)
        ids = {token: i for i, token in enumerate(self.tokens)}
        missing = [b for b in range(256) if bytes([b]) not in ids]
        if missing:
            raise ValueError(f"every byte must be a token, but {missing} are not")
        self._ids = ids
        self._byte_ids = np.array([ids[bytes([b])] for b in range(256)], dtype=np.int32)

    def encode(self, text: str) -> np.ndarray:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        parts = [self._encoding.encode_to_numpy(piece, disallowed_special=()) for piece in _cut_long_blanks(text)]
        return np.concatenate(parts).astype(np.int32)

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Token ids of any bytes, UTF-8 or not: int32, shape (T,); `decode_bytes` gives exactly `data` back.

        The same ids as `encode` where `data` is UTF-8; a byte that is not becomes the token of that byte.
        """
        # Python's surrogateescape maps such a byte to one character in U+DC80..U+DCFF, which nothing else maps to.
        stretches = re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape"))
        parts = [self.encode(text) for text in stretches]
        for i in range(1, len(stretches), 2):
            raw = stretches[i].encode("utf-8", "surrogateescape")
            parts[i] = self._byte_ids[np.frombuffer(raw, dtype=np.uint8)]
        return np.concatenate(parts)

    @cached_property
    def _encoding(self):
        import tiktoken

        # End-of-text is not made known to tiktoken: what it does not know, no text can be mistaken for.
        return tiktoken.Encoding(self.kind, pat_str=PATTERN, mergeable_ranks=self._ids, special_tokens={})


def _cut_long_blanks(text: str) -> Iterator[str]:
    """Pieces of `text` that give the same words as the whole.

    tiktoken's regex engine panics when a few hundred thousand blanks precede a word: it keeps each as
    a place to go back to. PATTERN itself cuts before the last blank; cutting there first leaves the
    run at the end of a piece, where it is matched in one go.
    """
    import regex  # tiktoken's own dependency; unlike re, its \s is the one of tiktoken's engine

    start = 0
    for run in regex.finditer(r"\s{10000,}", text):
        if run.end() < len(text):
            yield text[start : run.end() - 1]
            start = run.end() - 1
    yield text[start:]
