"""What every tokenizer offers, and the file that keeps one."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gpt2x.errors import UserError
from gpt2x.files import write_atomic

END_OF_TEXT = "<|endoftext|>"
FORMAT = "gpt2x.tokenizer/1"


class TokenizerError(UserError, ValueError):
    """Text, ids or a file that a tokenizer cannot use; the message says which and what to do."""


class Tokenizer(ABC):
    """A fixed list of byte strings, the tokens, and a rule (`encode`) that cuts text into them.

    A token's id is its place in the list; end-of-text comes after the last one, stands between
    documents and is never the result of encoding text.

    kind         "gpt2", "bpe" or "char"
    tokens       the byte strings in the order of their ids, without end-of-text
    vocab_size   how many ids there are, end-of-text included
    end_of_text  its id, vocab_size - 1
    """

    kind: ClassVar[str]
    rule: ClassVar[str] = ""  # what else decides how text is cut; part of the fingerprint

    def __init__(self, tokens: Iterable[bytes]):
        self.tokens = tuple(tokens)
        self.end_of_text = len(self.tokens)
        self.vocab_size = len(self.tokens) + 1
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError("a token occurs twice")

    @classmethod
    @abstractmethod
    def from_corpus(cls, texts: Iterable[str], **settings: Any) -> Tokenizer:
        """The tokenizer that the config describes; `texts` yields the text to learn from, piece by piece."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`: int32, shape (T,).

        All of it is ordinary text: the characters "<|endoftext|>" in it do not become end-of-text.
        """

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`, with U+FFFD wherever the bytes are not UTF-8 (a character cut in half, say)."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The exact bytes of `ids`, shape (T,); end-of-text gives b"<|endoftext|>".

        Raises TokenizerError for an id outside 0 .. vocab_size - 1 (a model may have spare rows).
        """
        ids = np.asarray(ids)
        if ids.size == 0:
            return b""
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise TokenizerError(f"ids must be one row of integers, not {ids.dtype} of shape {ids.shape}")
        outside = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if outside.size:
            where = outside[0]
            raise TokenizerError(f"id {ids[where]} at position {where} is no token: ids are 0 to {self.vocab_size - 1}")
        return b"".join(map(self._pieces.__getitem__, ids.tolist()))

    def token_lengths(self) -> np.ndarray:
        """Bytes of text that each token stands for: int64, shape (vocab_size,); end-of-text stands for none."""
        return np.array([len(token) for token in self.tokens] + [0], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of everything that decides how text is encoded. Equal fingerprints: equal ids for any text."""
        digest = hashlib.sha256(f"{self.kind}\n{self.rule}\n".encode())
        # Each length comes before its token: without it, moving a byte between neighbours would go unseen.
        digest.update(b"".join(len(token).to_bytes(4, "little") + token for token in self.tokens))
        return digest.hexdigest()

    @cached_property
    def _pieces(self) -> list[bytes]:
        return [*self.tokens, END_OF_TEXT.encode()]

    def to_record(self) -> dict[str, Any]:
        """What `save` must write, beyond what it writes for every kind, to build this tokenizer again."""
        return {}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Tokenizer:
        """The inverse of `to_record`. Raises KeyError, TypeError or ValueError if the record makes no sense."""
        return cls()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]}...)"


def save(tokenizer: Tokenizer, path: str | os.PathLike) -> None:
    """Write `tokenizer` to `path`, atomically: a JSON file, or `tokenizer.json` in `path` if that is a folder."""
    record = {
        "format": FORMAT,
        "kind": tokenizer.kind,
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
    }
    text = json.dumps(record | tokenizer.to_record(), ensure_ascii=False, indent=1)
    write_atomic(_file(path), text + "\n")


def load(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer that `save` wrote to `path`.

    Raises TokenizerError if there is no such file, or if it does not hold, to the byte, the
    tokenizer whose fingerprint it carries: other ids would turn a trained model's output to noise.
    """
    file = _file(path)
    if not file.is_file():
        raise TokenizerError(f"{file}: no such file; save a tokenizer there, or give the folder or file that has one")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        found = record["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file, f"it is not a whole JSON object with a format ({error!r})") from error
    if found != FORMAT:
        raise TokenizerError(f"{file}: format {found!r} is unknown, this version reads {FORMAT!r}; update gpt2x")
    try:
        tokenizer = _classes()[record["kind"]].from_record(record)
        promised = {"fingerprint": record["fingerprint"], "vocab_size": record["vocab_size"]}
    except TokenizerError:  # not the file's fault: GPT-2's vocabulary is missing on this machine
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file, f"it holds no usable tokenizer ({error!r})") from error
    for name, value in promised.items():
        if getattr(tokenizer, name) != value:
            raise _damaged(file, f"its {name} is {value!r}, that of its tokens {getattr(tokenizer, name)!r}")
    return tokenizer


def _file(path: str | os.PathLike) -> Path:
    path = Path(path)
    return path / "tokenizer.json" if path.is_dir() else path


def _classes() -> dict[str, type[Tokenizer]]:
    from gpt2x.tokenizer.bpe import BPETokenizer
    from gpt2x.tokenizer.char import CharTokenizer
    from gpt2x.tokenizer.gpt2 import GPT2Tokenizer

    return {cls.kind: cls for cls in (GPT2Tokenizer, BPETokenizer, CharTokenizer)}


def _damaged(file: Path, problem: str) -> TokenizerError:
    return TokenizerError(
        f"{file}: damaged or edited: {problem}.\n  Put back an intact copy or train anew: "
        "a model understands only the ids it was trained with."
    )
