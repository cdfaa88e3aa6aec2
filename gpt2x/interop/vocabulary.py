"""A byte-level tokenizer as the two files that OpenAI and Hugging Face keep one in.

    encoder.json, vocab.json    {token: id}, each token in GPT-2's printable letters
    vocab.bpe, merges.txt       a line of version, then two tokens a line: what is joined, first come first joined

The names differ, the content does not. Our tokenizers join in the order of the ids, so files that join in another order
are refused.
"""

from __future__ import annotations

import json
from pathlib import Path

from gpt2x.files import sha256_file
from gpt2x.interop.pretrained import PretrainedError
from gpt2x.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2x.tokenizer.bpe import BPETokenizer
from gpt2x.tokenizer.byte_level import ByteLevelTokenizer
from gpt2x.tokenizer.gpt2 import FILES, GPT2Tokenizer, byte_letters, official_files

_VERSION = "#version: 0.2"
_LETTERS = byte_letters()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}


def is_gpt2(encoder: Path, joins: Path) -> bool:
    """Whether the two files are OpenAI's own, to the byte."""
    return [sha256_file(path) for path in (encoder, joins)] == [FILES["encoder.json"], FILES["vocab.bpe"]]


def read_vocabulary(encoder: Path, joins: Path) -> Tokenizer:
    """The tokenizer in the two files. Raises PretrainedError where they are torn, or describe one that we do not have."""
    if is_gpt2(encoder, joins):
        return GPT2Tokenizer()
    try:
        ids = json.loads(encoder.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{encoder}: cannot be read ({error})") from None
    try:
        lines = [line for line in joins.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#version")]
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{joins}: cannot be read ({error})") from None
    return tokenizer_of(ids, lines, encoder, joins)


def tokenizer_of(ids: dict[str, int], joins: list[str], ids_file: Path, joins_file: Path) -> BPETokenizer:
    """The tokenizer of these tokens, in GPT-2's printable letters, and joins; the files that they are from are for messages.

    Raises PretrainedError where it is none that we have.
    """
    try:
        by_id = {number: token for token, number in ids.items()}
        tokens = [by_id[number] for number in range(len(ids))]
    except (AttributeError, KeyError, TypeError) as error:
        raise PretrainedError(f"{ids_file}: not a JSON object of tokens with the ids 0, 1, 2, ... ({error!r})") from None
    if not tokens or tokens[-1] != END_OF_TEXT:
        raise PretrainedError(f"{ids_file}: the last token is not {END_OF_TEXT}, and no other tokenizer can be represented")
    try:
        tokenizer = BPETokenizer([bytes(map(_BYTES.__getitem__, token)) for token in tokens[:-1]])
    except (KeyError, ValueError) as error:
        raise PretrainedError(f"{ids_file}: not the tokens of a byte-level tokenizer ({error})") from None
    if joins != _merge_lines(tokenizer):
        problem = "joins the tokens in another order than that of their ids"
        raise PretrainedError(f"{joins_file}: {problem}, and such a tokenizer cannot be represented")
    return tokenizer


def vocabulary_texts(tokenizer: Tokenizer) -> tuple[str, str]:
    """What the two files hold of `tokenizer`: of GPT-2's own, OpenAI's to the byte.

    Raises PretrainedError for one that is not byte-level.
    """
    if isinstance(tokenizer, GPT2Tokenizer):
        files = official_files()
        return files["encoder.json"].decode("utf-8"), files["vocab.bpe"].decode("utf-8")
    if not isinstance(tokenizer, ByteLevelTokenizer):
        problem = f"a {tokenizer.kind} tokenizer cannot be represented, only byte-level ones can"
        raise PretrainedError(f"{problem}; train with tokenizer=bpe or tokenizer=gpt2")
    tokens = [*map(letters, tokenizer.tokens), END_OF_TEXT]
    encoder = json.dumps({token: i for i, token in enumerate(tokens)})
    return encoder, "\n".join([_VERSION, *_merge_lines(tokenizer)]) + "\n"


def letters(token: bytes) -> str:
    """A token in GPT-2's printable letters."""
    return "".join(map(_LETTERS.__getitem__, token))


def _merge_lines(tokenizer: ByteLevelTokenizer) -> list[str]:
    from gpt2x.interop.gguf import merges  # which needs torch

    return [" ".join(map(letters, pair)) for pair in merges(tokenizer)]
