"""Settings of the tokenizer group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gpt2x.config.option import option


@dataclass(kw_only=True)
class GPT2TokenizerConfig:
    """GPT-2's own byte-pair encoding, 50,257 tokens."""

    learns_from: ClassVar[tuple[str, ...]] = ()  # splits of the corpus
    _target_: str = "gpt2x.tokenizer.gpt2.GPT2Tokenizer.from_corpus"


@dataclass(kw_only=True)
class BPETokenizerConfig:
    """A byte-level byte-pair encoding trained here, on the training split."""

    learns_from: ClassVar[tuple[str, ...]] = ("train",)  # splits of the corpus
    _target_: str = "gpt2x.tokenizer.bpe.BPETokenizer.from_corpus"
    vocab_size: int = option(2048, "tokens: 256 bytes, the merges, and end-of-text", minimum=257, maximum=65536)
    max_bytes: int = option(10_000_000, "bytes of the training split to learn the merges from", minimum=1)


@dataclass(kw_only=True)
class CharTokenizerConfig:
    """One token a character of the corpus, plus end-of-text."""

    learns_from: ClassVar[tuple[str, ...]] = ("train", "val", "test")  # splits of the corpus
    _target_: str = "gpt2x.tokenizer.char.CharTokenizer.from_corpus"
