"""Settings of the data group."""

from __future__ import annotations

import glob
import importlib.util
import os
from dataclasses import dataclass
from typing import ClassVar

from gpt2x.config.option import ConfigError, option, show

SPLITS = ("train", "val", "test")  # in the order of their places in the text
TABLE_FORMATS = ("csv", "tsv", "parquet", "jsonl")


@dataclass(kw_only=True)
class SourceConfig:
    """Where data come from; every config of this group builds on it.

    That is one of: the package itself (`builtin`), a public address (`url`, kept in paths.cache and looked for
    first in paths.mirror), or the user's own disk (`path`).
    """

    kind: ClassVar[str]  # what a task must be able to read: "text", "table" or "instructions"
    example: ClassVar[str]  # how a user names data of their own, for messages
    _target_: str
    name: str
    builtin: str | None = option(None, "file shipped inside the package")
    url: str | None = option(None, "public address of the file, or of the zip that holds it")
    member: str | None = option(None, "the file's name inside the zip at url; null: url is the file itself")
    archive_sha256: str | None = option(None, "pinned hash of that zip; without one the first download's is remembered")
    file: str | None = option(None, "the file's name in the cache and the mirror; null: the last part of member or url")
    sha256: str | None = option(None, "pinned hash of the file; without one the first download's is remembered")
    path: str | None

    def check(self) -> None:
        sources = {k: getattr(self, k) for k in ("builtin", "url", "path") if getattr(self, k) is not None}
        if not sources:
            raise ConfigError("path", None, "no file given", f"say where yours is, such as {self.example}")
        if len(sources) > 1:
            problem = f"the data have several sources ({', '.join(sources)})"
            raise ConfigError("path", self.path, problem, f"use {self.example.split()[0]} for your own files")
        for name in ("member", "file", "sha256"):
            if self.url is None and getattr(self, name) is not None:
                raise ConfigError(name, getattr(self, name), "belongs to a file that is fetched from data.url; this one is not")
        if self.member is None and self.archive_sha256 is not None:
            problem = "belongs to a zip, and data.member, the file in it, is not given"
            raise ConfigError("archive_sha256", self.archive_sha256, problem, "the hash of the file itself is data.sha256")
        if self.member is not None and name_in_cache(self.url, self.member, self.file) == name_in_cache(self.url):
            raise ConfigError("file", self.file, "is the name of the zip itself", "give the file inside it another one")


def name_in_cache(url: str, member: str | None = None, file: str | None = None) -> str:
    """What a fetched file is called in the cache and the mirror."""
    return file or (member or url).rsplit("/", 1)[-1]


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise ConfigError where the held-out shares are all there is."""
    if val_fraction + test_fraction >= 1:
        problem = f"with val_fraction={val_fraction} nothing is left to train on"
        raise ConfigError("test_fraction", test_fraction, problem)


@dataclass(kw_only=True)
class TextConfig(SourceConfig):
    """A corpus of plain UTF-8 text for a language model."""

    kind: ClassVar[str] = "text"
    example: ClassVar[str] = "data=text data.path=notes.txt"
    _target_: str = "gpt2x.data.text.TextCorpus"
    name: str = option("text", "what the corpus is called in logs and caches")
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
        super().check()
        check_fractions(self.val_fraction, self.test_fraction)

    def check_available(self) -> None:
        """Raise ConfigError if the user's own text is not where `path` says."""
        path = os.path.expanduser(self.path or "")
        if self.path is not None and not os.path.exists(path) and not glob.glob(path, recursive=True):
            raise ConfigError("path", self.path, "no such file, folder or glob match", f"looked from {os.getcwd()}")


@dataclass(kw_only=True)
class TableConfig(SourceConfig):
    """A table of labelled texts, one a row, for a classifier: CSV, TSV, Parquet or JSON lines."""

    kind: ClassVar[str] = "table"
    example: ClassVar[str] = "data=table data.path=messages.csv"
    _target_: str = "gpt2x.data.table.TableCorpus"
    name: str = option("table", "what the table is called in logs and caches")
    path: str | None = option(None, "your own table, one file", verbatim=True)
    format: str | None = option(None, "of the file; null: from the end of its name", choices=(None, *TABLE_FORMATS))
    columns: list[str] | None = option(None, "names of the columns of a CSV or TSV without a header line; null: it has one")
    quoting: str = option(
        "standard",
        "of CSV and TSV. standard: quotes around a field let it hold separators and line ends; "
        "none: a quote is a character like any other",
        choices=("standard", "none"),
    )
    text_column: str = option("text", "column of the texts", verbatim=True)
    label_column: str = option("label", "column of their labels", verbatim=True)
    labels: list[str] | None = option(
        None, "the labels that are allowed, in the order of their classes; null: those found, sorted"
    )
    balance: bool = option(False, "draw from each class as many rows as the smallest has, and leave out the others")
    split: str = option(
        "stratified",
        "stratified: the same shares of every class, rows of the same text in the same split; "
        "book: all rows shuffled and cut by position, to compare with the book",
        choices=("stratified", "book"),
    )
    split_seed: int = option(123, "fixes which rows balance keeps and which split each goes to", minimum=0, maximum=2**32 - 1)
    val_fraction: float = option(0.1, "share of the rows held out for validation", minimum=0, below=1)
    test_fraction: float = option(0.2, "share of the rows measured once, when the run ends", minimum=0, below=1)
    batch_size: int = option(8, "rows in one micro-batch", minimum=1)
    eval_batch_size: int | None = option(
        None, "rows in one evaluation batch (null: batch_size); the result does not depend on it", minimum=1
    )
    drop_last: bool = option(False, "leave out an epoch's last batch where it is a smaller one")
    shuffle: bool = option(True, "visit the rows in a new random order each epoch")

    def check(self) -> None:
        super().check()
        check_fractions(self.val_fraction, self.test_fraction)
        file = self.builtin or self.path or name_in_cache(self.url, self.member, self.file)
        format = table_format(file, self.format)
        if format is None:
            raise ConfigError("format", None, f"the name {file} does not tell it", f"one of {', '.join(TABLE_FORMATS)}")
        if format not in ("csv", "tsv"):
            for name, default in (("columns", None), ("quoting", "standard")):
                if getattr(self, name) != default:
                    raise ConfigError(name, getattr(self, name), f"is for csv and tsv; this is {format}", "leave it out")
        if self.text_column == self.label_column:
            raise ConfigError("label_column", self.label_column, "is data.text_column too", "name two columns")
        for name in ("text_column", "label_column"):
            if self.columns is not None and getattr(self, name) not in self.columns:
                raise ConfigError(name, getattr(self, name), f"is none of data.columns={show(self.columns)}")
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ConfigError("columns", self.columns, "two columns have the same name")
        if self.labels is not None:
            if len(self.labels) < 2:
                raise ConfigError("labels", self.labels, "there must be at least two classes", "null takes those in the file")
            if len(set(self.labels)) < len(self.labels) or any(label != label.strip() or not label for label in self.labels):
                raise ConfigError("labels", self.labels, "each must be another text, with no white space around it")

    def check_available(self) -> None:
        """Raise ConfigError if the user's own table is not where `path` says, or nothing here can read it."""
        if self.path is not None and not os.path.isfile(os.path.expanduser(self.path)):
            raise ConfigError("path", self.path, "no such file", f"looked from {os.getcwd()}")
        file = self.builtin or self.path or name_in_cache(self.url, self.member, self.file)
        if table_format(file, self.format) == "parquet" and importlib.util.find_spec("pyarrow") is None:
            remedy = "pip install 'gpt2x[parquet]', or save the table as CSV"
            raise ConfigError("format", "parquet", "needs the package pyarrow, which is not installed", remedy)


def table_format(file: str, format: str | None) -> str | None:
    """The format of a table: as given, else what the end of the file's name says, None where it says nothing."""
    suffix = os.path.splitext(file)[1][1:].lower()
    return format or (suffix if suffix in TABLE_FORMATS else None)


@dataclass(kw_only=True)
class InstructionsConfig(SourceConfig):
    """Instructions, some with an input, and the outputs wanted for them: JSON, or JSON lines, in UTF-8.

    One file is cut into splits by position; a set may also bring files of its own for validation and test.
    """

    kind: ClassVar[str] = "instructions"
    example: ClassVar[str] = "data=records data.path=mine.jsonl"
    _target_: str = "gpt2x.data.instructions.InstructionCorpus"
    name: str = option("instructions", "what the set is called in logs and caches")
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
    drop_last: bool = option(False, "leave out an epoch's last batch where it is a smaller one")
    shuffle: bool = option(True, "visit the examples in a new random order each epoch")

    def check(self) -> None:
        super().check()
        for split in ("val_", "test_"):
            self._check_own_file(split)
            fraction = getattr(self, f"{split}fraction")
            if fraction and (getattr(self, f"{split}url") or getattr(self, f"{split}path")):
                raise ConfigError(
                    f"{split}fraction", fraction, f"data.{split}url or data.{split}path gives this split its own file"
                )
        if self.instruction is not None and not self.instruction.strip():
            raise ConfigError("instruction", self.instruction, "expected words; null takes them from instruction_field")
        own_files = any((self.val_url, self.val_path, self.test_url, self.test_path))
        val, test = held_out(self.val_fraction, self.test_fraction, own_files)
        check_fractions(val, test)
        if sorted(self.order) != sorted(SPLITS):
            raise ConfigError("order", self.order, f"expected {', '.join(SPLITS)}, each once, such as [train,test,val]")

    def _check_own_file(self, split: str) -> None:
        """The file of a split of its own; `split` is how the names of its settings begin."""
        url, path = getattr(self, f"{split}url"), getattr(self, f"{split}path")
        if None not in (url, path):
            raise ConfigError(f"{split}path", path, f"data.{split}url is given too", "leave out one of them")
        for name in (f"{split}file", f"{split}sha256"):
            if url is None and getattr(self, name) is not None:
                problem = f"belongs to a file that is fetched from data.{split}url; this one is not"
                raise ConfigError(name, getattr(self, name), problem)

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
