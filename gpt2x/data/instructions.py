"""Instruction records: JSON from the package, an address or the user's disk, read, checked and split.

Data comes in as one file that is cut by position, or as a file for each split, and leaves as `Record`s, which
gpt2x/task/instruct.py turns into tokens. Such sets fit into memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.data.config import SPLITS, held_out
from gpt2x.data.source import decode, shipped_or_fetched
from gpt2x.errors import UserError
from gpt2x.files import shown

log = logging.getLogger(__name__)
_FORMAT = 1  # raise it when the same files would be read as other records


@dataclass(frozen=True)
class Record:
    """What is asked, what it is asked about ("" for nothing), and one or more outputs that are all right.

    `line` is where it stands in its file: the line of JSON lines, the number (from 1) in a JSON list.
    """

    instruction: str
    input: str
    outputs: tuple[str, ...]
    line: int


class InstructionCorpus:
    """A set of instructions: see InstructionsConfig for the settings. `cache` and `mirror` are folders, as in `fetch`.

    name         what it is called
    splits       the records of "train", "val" and "test", in the order of their files
    fingerprint  hex sha256 of all of them
    batching     batch_size, eval_batch_size, drop_last and shuffle, for whoever makes batches of them
    """

    def __init__(
        self,
        *,
        name: str,
        builtin: str | None,
        url: str | None,
        member: str | None,
        archive_sha256: str | None,
        file: str | None,
        sha256: str | None,
        path: str | None,
        val_url: str | None,
        val_file: str | None,
        val_sha256: str | None,
        val_path: str | None,
        test_url: str | None,
        test_file: str | None,
        test_sha256: str | None,
        test_path: str | None,
        instruction_field: str,
        input_field: str | None,
        output_field: str,
        instruction: str | None,
        val_fraction: float | None,
        test_fraction: float | None,
        order: list[str],
        drop_empty: bool,
        drop_seen: bool,
        batch_size: int,
        eval_batch_size: int | None,
        drop_last: bool,
        shuffle: bool,
        cache: Path,
        mirror: Path | None = None,
    ):
        self.name, self.about = name, {}  # a model need not know more of its data than the tokens
        self.batching = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size or batch_size,
            "drop_last": drop_last,
            "shuffle": shuffle,
        }
        fields = _Fields(instruction_field, input_field, output_field, instruction)

        def records(url: str | None, path: str | None, **settings: str | None) -> list[Record]:
            if path is not None:
                return _read(Path(os.path.expanduser(path)), fields, drop_empty)
            source = {"builtin": None, "member": None, "archive_sha256": None} | settings
            return _read(shipped_or_fetched(url=url, cache=cache, mirror=mirror, **source), fields, drop_empty)

        first = records(url, path, builtin=builtin, member=member, archive_sha256=archive_sha256, file=file, sha256=sha256)
        own = {}
        if val_url or val_path:
            own["val"] = records(val_url, val_path, file=val_file, sha256=val_sha256)
        if test_url or test_path:
            own["test"] = records(test_url, test_path, file=test_file, sha256=test_sha256)
        self.splits = _cut(first, order, *held_out(val_fraction, test_fraction, bool(own))) | own
        if not self.splits["train"]:
            raise UserError(
                f"data={name}: too few records ({len(first)}) to hold some out and train on the rest\n"
                "  Use more records, or data.val_fraction=0 data.test_fraction=0."
            )
        self._handle_seen(drop_seen)
        identity = [[[r.instruction, r.input, *r.outputs] for r in self.splits[split]] for split in SPLITS]
        self.fingerprint = hashlib.sha256(json.dumps([_FORMAT, identity]).encode()).hexdigest()

    def texts(self, *splits: str) -> Iterator[str]:
        """What the records of the splits (all without arguments) say, one text a record: for learning a tokenizer."""
        for split in splits or SPLITS:
            for record in self.splits[split]:
                yield "\n".join(filter(None, (record.instruction, record.input, *record.outputs)))

    def __str__(self) -> str:
        return f"{self.name}: " + " + ".join(f"{len(r):,} {split}" for split, r in self.splits.items() if r) + " records"

    def _handle_seen(self, drop: bool) -> None:
        """Drop from each held-out split, or only tell of, what an earlier split (in the order of SPLITS) asks too."""
        seen: set[tuple[str, str]] = set()
        found = {}
        for split in SPLITS:
            asked = [(r.instruction, r.input) for r in self.splits[split]]
            known = [key in seen for key in asked]
            seen.update(asked)
            if any(known):
                found[split] = sum(known)
                if drop:
                    self.splits[split] = [r for r, twice in zip(self.splits[split], known) if not twice]
        if found:
            how_many = " and ".join(f"{n:,} {split}" for split, n in found.items())
            what = "left out" if drop else "kept; data.drop_seen=true leaves them out"
            log.info("records  %s ask what an earlier split asks too: %s", how_many, what)


@dataclass(frozen=True)
class _Fields:
    """Under which keys an object has its parts; `constant` is the instruction of objects that have none."""

    instruction: str
    input: str | None
    output: str
    constant: str | None


def _cut(records: list[Record], order: list[str], val_fraction: float, test_fraction: float) -> dict[str, list[Record]]:
    """The records in three parts, by position."""
    share = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
    ends = [int(len(records) * total + 1e-6) for total in itertools.accumulate(share[split] for split in order)]
    parts = {split: records[start:end] for split, start, end in zip(order, [0, *ends], ends)}
    return {split: parts[split] for split in SPLITS}


def _read(path: Path, fields: _Fields, drop_empty: bool) -> list[Record]:
    """All records of one file, or UserError with the place of the first that cannot be used."""
    unit, found = objects(path)
    if not found:
        raise UserError(f"{shown(path)}: the list holds no record")
    others = [name for name in (fields.instruction if fields.constant is None else None, fields.output) if name is not None]
    first = found[0][1]
    alike = isinstance(first, dict) and all(name in first for name in others)  # else that is what is wrong
    if alike and fields.input is not None and not any(isinstance(o, dict) and fields.input in o for _, o in found):
        raise UserError(
            f"{shown(path)}: no record has the field {fields.input!r} (data.input_field)\n"
            f"  {_having(first)}Use data.input_field=null where there are no inputs."
        )
    records = []
    for line, value in found:
        try:
            records.append(_record(value, fields, line))
        except _EmptyError as error:
            if not drop_empty:
                remedy = "data.drop_empty=true leaves out records without an instruction or an output."
                raise UserError(f"{shown(path)}: {unit} {line:,}: {error}\n  {remedy}") from None
        except ValueError as error:
            raise UserError(f"{shown(path)}: {unit} {line:,}: {error}") from None
    if empty := len(found) - len(records):
        log.info("records  %s of %s in %s lack an instruction or an output: left out", f"{empty:,}", len(found), path.name)
    return records


def objects(path: Path) -> tuple[str, list[tuple[int, Any]]]:
    """Each value of a JSON list, or of JSON lines, with its number (from 1); and what is numbered: "record" or "line".

    Raises UserError with the place where the file cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from error
    text = decode(raw.removeprefix(b"\xef\xbb\xbf"), path)
    if not text.strip():
        raise UserError(f"{shown(path)}: the file is empty")
    if text.lstrip().startswith("["):
        return "record", list(enumerate(_parse(text, path, 1), start=1))
    lines = enumerate(text.split("\n"), start=1)
    return "line", [(number, _parse(line, path, number)) for number, line in lines if line.strip()]


def _parse(text: str, path: Path, line: int) -> Any:
    """The JSON value that `text`, which begins in this line of the file, is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, problem = line + error.lineno - 1, f"no valid JSON at column {error.colno:,} ({error.msg})"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets without end
        problem = f"no usable JSON ({error})"
    raise UserError(f"{shown(path)}: line {line:,}: {problem}\n  A file is one list of objects, or holds one object a line.")


class _EmptyError(ValueError):
    """A record without an instruction or an output."""


def _record(found: Any, fields: _Fields, line: int) -> Record:
    """One record, or ValueError that says what is wrong with it."""
    if not isinstance(found, dict):
        raise ValueError(f"this is {_kind(found)}, not an object of named fields")
    instruction, given = fields.constant, found.get(fields.input) if fields.input is not None else None
    if instruction is None:
        instruction = text_of(_field(found, fields.instruction, "instruction_field"), fields.instruction)
    given = [] if given is None else given if isinstance(given, list) else [given]  # a single record may do without
    outputs = _field(found, fields.output, "output_field")
    outputs = outputs if isinstance(outputs, list) else [outputs]
    record = Record(
        instruction=instruction,
        input=" ".join(text_of(part, fields.input) for part in given),
        outputs=tuple(text_of(output, fields.output) for output in outputs),
        line=line,
    )
    for name, texts in ((fields.instruction, [instruction]), (fields.output, record.outputs)):
        if not texts or not all(text.strip() for text in texts):
            raise _EmptyError(f"the field {name!r} is empty")
    return record


def _field(found: dict, name: str, setting: str) -> Any:
    if name not in found:
        raise ValueError(f"there is no field {name!r} (data.{setting})\n  {_having(found)}")
    return found[name]


def _having(found: Any) -> str:
    """What fields there are, as a remedy for one that there is not."""
    return f"The fields here: {', '.join(found) or 'none'}. " if isinstance(found, dict) else ""


def text_of(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the field {name!r} holds {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the field {name!r} holds half a character (\\u{ord(value[error.start]):04x})") from None
    return value


def _kind(value: Any) -> str:
    """A JSON value's type in JSON's own words."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object")
