"""From text to token ids and back: GPT-2's own byte pairs, byte pairs learned here, or characters.

    tokenizer = BPETokenizer.from_corpus(texts, vocab_size=1024)
    ids = tokenizer.encode("Once upon a time")    # int32, shape (T,)
    tokenizer.decode(ids)                         # "Once upon a time"
    save(tokenizer, "tokenizer.json"); load("tokenizer.json")

What all of them share is `base.Tokenizer`; each kind has a module of its own.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Tokenizer", "TokenizerError", "load", "save"]


def __getattr__(name: str) -> Any:
    # Late, so that reading gpt2x.tokenizer.config (every command does, even for --help) imports no numpy.
    if name in __all__:
        from gpt2x.tokenizer import base

        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
