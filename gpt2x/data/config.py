"""Settings of the data group."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from typing import Any, ClassVar

from gpt2x.config.option import ConfigError, option

SPLITS = ("train", "val", "test")  # in the order of their places in the text


@dataclass(kw_only=True)
class TextConfig:
    """A corpus of plain UTF-8 text for a language model.

    It comes from one of: the package itself (`builtin`), a public address (`url`, kept in
    paths.cache and looked for first in paths.mirror), or the user's own disk (`path`).
    """

    kind: ClassVar[str] = "text"
    _target_: str = "gpt2x.data.text.TextCorpus"
    name: str = option("text", "what the corpus is called in logs and caches")
    builtin: str | None = option(None, "file shipped inside the package")
    url: str | None = option(None, "public address of the file")
    file: str | None = option(None, "its name in the cache and the mirror; null: the last part of the url")
    sha256: str | None = option(None, "pinned hash of the file; without one the first download's is remembered")
    path: str | None = option(
        None, "your own text: a file, a folder (its *.txt and *.md, recursively) or a glob", verbatim=True
    )
    strip: str | None = option(None, "gutenberg: drop Project Gutenberg's header and licence", choices=(None, "gutenberg"))
    separator: str | None = option(None, "string between documents; each document then ends with the end-of-text token")
    val_fraction: float = option(0.1, "share of the text, by position, held out for validation", minimum=0, below=1)
    test_fraction: float = option(0.0, "share of the text, its very end, measured once, when the run ends", minimum=0, below=1)
    batch_size: int = option(16, "windows in one micro-batch", minimum=1)
    eval_batch_size: int | None = option(
        None, "windows in one evaluation batch (null: batch_size); the result does not depend on it", minimum=1
    )
    stride: int | None = option(
        None, "tokens between the starts of windows; null: windows lie end to end, shifted anew each epoch", minimum=1
    )
    drop_last: bool = option(False, "end an epoch before its last, smaller batch instead of filling it from the next epoch")
    shuffle: bool = option(True, "visit the windows in a new random order each epoch")

    def check(self) -> None:
        _check_source(self, own="text", example="notes.txt")
        if self.val_fraction + self.test_fraction >= 1:
            raise ConfigError(
                "test_fraction", self.test_fraction, f"with val_fraction={self.val_fraction} nothing is left to train on"
            )

    def check_available(self) -> None:
        """Raise ConfigError if the user's own text is not where `path` says."""
        path = os.path.expanduser(self.path or "")
        if self.path is not None and not os.path.exists(path) and not glob.glob(path, recursive=True):
            raise ConfigError("path", self.path, "no such file, folder or glob match", f"looked from {os.getcwd()}")


@dataclass(kw_only=True)
class InstructionsConfig:
    """Instructions, some with an input, and the outputs wanted for them: JSON, or JSON lines, in UTF-8.

    They come from one of: the package itself (`builtin`), a public address (`url`), or the user's own disk
    (`path`). One file is cut into splits by position; a set may also bring files of its own for validation and test.
    """

    _target_: str = "gpt2x.data.instructions.InstructionCorpus"
    kind: ClassVar[str] = "instructions"
    name: str = option("instructions", "what the set is called in logs and caches")
    builtin: str | None = option(None, "file shipped inside the package")
    url: str | None = option(None, "public address of the file")
    file: str | None = option(None, "its name in the cache and the mirror; null: the last part of the url")
    sha256: str | None = option(None, "pinned hash of the file; without one the first download's is remembered")
    path: str | None = option(None, "your own file: a JSON list of objects, or JSON lines", verbatim=True)
    val_url: str | None = option(None, "the same for a set with a validation file of its own")
    val_file: str | None = option(None, "its name in the cache and the mirror")
    val_sha256: str | None = option(None, "its pinned hash")
    val_path: str | None = option(None, "your own validation file", verbatim=True)
    test_url: str | None = option(None, "the same for a set with a test file of its own")
    test_file: str | None = option(None, "its name in the cache and the mirror")
    test_sha256: str | None = option(None, "its pinned hash")
    test_path: str | None = option(None, "your own test file", verbatim=True)
    instruction_field: str = option("instruction", "key of the instruction in each object")
    input_field: str | None = option("input", "key of the input (text, or texts joined by a space); null: there are none")
    output_field: str = option("output", "key of the output (text, or several texts that are all right)")
    instruction: str | None = option(
        None, "one instruction for all objects, instead of instruction_field: for sets that state none", verbatim=True
    )
    val_fraction: float | None = option(
        None, "share held out for validation; null: 0.05, or none where there are val_ or test_ files", minimum=0, below=1
    )
    test_fraction: float | None = option(
        None, "share held out for the test; null: 0.10, or none where there are val_ or test_ files", minimum=0, below=1
    )
    order: list[str] = option(["train", "test", "val"], "of the splits in a file that is cut, by position")
    drop_empty: bool = option(False, "leave out objects whose instruction or output is empty, which are refused otherwise")
    drop_seen: bool = option(
        True, "leave out of validation what is trained on (same instruction and input), and of the test what either holds"
    )
    batch_size: int = option(8, "examples in one micro-batch", minimum=1)
    eval_batch_size: int | None = option(
        None, "examples in one evaluation batch (null: batch_size); the result does not depend on it", minimum=1
    )
    shuffle: bool = option(True, "visit the examples in a new random order each epoch")

    def check(self) -> None:
        _check_source(self, own="records", example="mine.jsonl")
        for split in ("val_", "test_"):
            _check_source(self, split)
            fraction = getattr(self, f"{split}fraction")
            if fraction and (getattr(self, f"{split}url") or getattr(self, f"{split}path")):
                raise ConfigError(
                    f"{split}fraction", fraction, f"data.{split}url or data.{split}path gives this split its own file"
                )
        if self.instruction is not None and not self.instruction.strip():
            raise ConfigError("instruction", self.instruction, "expected words; null takes them from instruction_field")
        own_files = any((self.val_url, self.val_path, self.test_url, self.test_path))
        val, test = held_out(self.val_fraction, self.test_fraction, own_files)
        if val + test >= 1:
            raise ConfigError("test_fraction", test, f"with val_fraction={val} nothing is left to train on")
        if sorted(self.order) != sorted(SPLITS):
            raise ConfigError("order", self.order, f"expected {', '.join(SPLITS)}, each once, such as [train,test,val]")

    def check_available(self) -> None:
        """Raise ConfigError if the user's own files are not where the paths say."""
        for name in ("path", "val_path", "test_path"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(os.path.expanduser(path)):
                raise ConfigError(name, path, "no such file", f"looked from {os.getcwd()}")


def held_out(val_fraction: float | None, test_fraction: float | None, own_files: bool) -> tuple[float, float]:
    """The shares of validation and test that are cut from a set's first file, where null leaves it to what there is."""
    default = (0.0, 0.0) if own_files else (0.05, 0.10)
    return tuple(share if given is None else given for given, share in zip((val_fraction, test_fraction), default))


def _check_source(config: Any, split: str = "", *, own: str = "", example: str = "") -> None:
    """Raise ConfigError unless the data come from one place.

    `split` begins the names of settings of a file that is needed only where it is given: "val_".
    `own` and `example` are what a user would choose for a file of theirs.
    """
    names = [split + name for name in ("builtin", "url", "path") if hasattr(config, split + name)]
    sources = [name for name in names if getattr(config, name) is not None]
    if not sources and not split:
        remedy = f"say where it is, such as data={own} data.path={example}"
        raise ConfigError("path", None, f"no {'text' if own == 'text' else 'file'} given", remedy)
    if len(sources) > 1:
        name, remedy = f"{split}path", f"use data={own} for your own files" if own else "leave out one of them"
        raise ConfigError(name, getattr(config, name), f"the corpus has several sources ({', '.join(sources)})", remedy)
    for name in (f"{split}file", f"{split}sha256"):
        if getattr(config, f"{split}url") is None and getattr(config, name) is not None:
            what = f"belongs to a file that is fetched from data.{split}url; this one is not"
            raise ConfigError(name, getattr(config, name), what)
