"""Plain text for language models: where it lies, how it is split, and its tokens on disk.

A corpus is one or more files seen as one long row of bytes. Its splits are cut by position: training text
first, then validation, then test. Nothing here ever holds the whole corpus in memory.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import logging
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from gpt2x.data.config import SPLITS
from gpt2x.data.source import decode, shipped_or_fetched
from gpt2x.data.windows import WindowedData
from gpt2x.errors import UserError
from gpt2x.files import fsync_folder, sha256_file, write_atomic
from gpt2x.tokenizer.base import Tokenizer

log = logging.getLogger(__name__)

_PIECE = 1 << 20  # bytes handled at once
_FORMAT = 1  # raise it when the same text would be tokenized or stored differently
_SUFFIXES = {".txt", ".md"}


@dataclass(frozen=True)
class Segment:
    """The bytes [start, end) of one file."""

    path: Path
    start: int
    end: int


class TextCorpus:
    """A text corpus: see TextConfig for the settings. `cache` and `mirror` are folders, as in `fetch`."""

    about: ClassVar[dict] = {}  # a language model need not know more of its data than the tokens

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
        strip: str | None,
        separator: str | None,
        val_fraction: float,
        test_fraction: float,
        batch_size: int,
        eval_batch_size: int | None,
        stride: int | None,
        drop_last: bool,
        shuffle: bool,
        cache: Path,
        mirror: Path | None = None,
    ):
        self.name, self.cache = name, Path(cache)
        self.separator = separator.encode() if separator else None
        self.batching = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size or batch_size,
            "stride": stride,
            "drop_last": drop_last,
            "shuffle": shuffle,
        }
        if path is None:
            files = [
                shipped_or_fetched(
                    builtin=builtin,
                    url=url,
                    member=member,
                    archive_sha256=archive_sha256,
                    file=file,
                    sha256=sha256,
                    cache=self.cache,
                    mirror=mirror,
                )
            ]
        else:
            files = _users_files(os.path.expanduser(path))
        segments = [_without_gutenberg(f) if strip == "gutenberg" else Segment(f, 0, f.stat().st_size) for f in files]
        self.ends_documents = self.separator is not None or len(segments) > 1
        self.splits = dict(zip(SPLITS, self._cut(segments, val_fraction, test_fraction), strict=True))
        identity = [_FORMAT, separator, self.ends_documents]
        for split in SPLITS:
            identity.append([[self._content_hash(s.path), s.start, s.end] for s in self.splits[split]])
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def texts(self, *splits: str) -> Iterator[str]:
        """The text of the splits (all without arguments), in order, in pieces of about a megabyte."""
        for split in splits or SPLITS:
            for document, _ in self._documents(split):
                yield from document

    def tokenize(self, tokenizer: Tokenizer, *, context_length: int, seed: int) -> WindowedData:
        """The corpus as batches of token ids, ready for training; `seed` fixes the order."""
        arrays = self.tokens(tokenizer)
        return WindowedData(arrays, context_length=context_length, seed=seed, name=self.name, **self.batching)

    def tokens(self, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
        """The token ids of each split, shape (tokens,); where the corpus has documents, end-of-text follows each.

        They are made once per corpus and tokenizer and kept in the cache, one memory-mapped file a split,
        so that a second start is instant and the corpus may be larger than memory.
        """
        key = hashlib.sha256(f"{self.fingerprint} {tokenizer.fingerprint}".encode()).hexdigest()[:24]
        folder = self.cache / "tokens" / f"{self.name}-{tokenizer.kind}-{key}"
        if not (folder / "meta.json").exists():
            self._write_tokens(tokenizer, folder)
        meta = json.loads((folder / "meta.json").read_text())
        return {split: _map_tokens(folder / f"{split}.bin", meta["dtype"], n) for split, n in meta["tokens"].items()}

    # -- splitting ------------------------------------------------------------------------------------------

    def _cut(self, segments: list[Segment], val_fraction: float, test_fraction: float) -> list[list[Segment]]:
        """Cut the row of segments at the two positions, each moved to where no character or document is torn."""
        total = sum(s.end - s.start for s in segments)
        if total == 0:
            raise UserError(f"data={self.name}: the text is empty ({', '.join(str(s.path) for s in segments)})")
        shares = (1 - val_fraction - test_fraction, 1 - test_fraction)
        cuts = [self._whole_position(segments, int(total * share + 1e-6)) for share in shares]
        return [_between(segments, start, end) for start, end in itertools.pairwise([0, *cuts, total])]

    def _whole_position(self, segments: list[Segment], cut: int) -> int:
        """Where to cut the row of segments near `cut`.

        Where the next document starts, else where the last one does, else (the file is a single one) between characters.
        """
        before = 0
        for segment in segments:
            if cut <= before:
                break
            position = segment.start + cut - before
            if position < segment.end:
                return before + self._whole_position_in(segment, position) - segment.start
            before += segment.end - segment.start
        return before

    def _whole_position_in(self, segment: Segment, position: int) -> int:
        with _mapped(segment) as data:
            if (separator := self.separator) is not None:
                end = segment.end  # of the last document
                if data[end - len(separator) : end] == separator:
                    end -= len(separator)
                found = data.find(separator, max(segment.start + 1, position - len(separator)), end)
                if found < 0:
                    found = data.rfind(separator, segment.start + 1, min(position, end))
                if found >= 0:
                    return found + len(separator)
                if position >= end:
                    return segment.end
            while position < segment.end and data[position] & 0xC0 == 0x80:  # inside a UTF-8 character
                position += 1
        return position

    # -- reading --------------------------------------------------------------------------------------------

    def _documents(self, split: str) -> Iterator[tuple[Iterator[str], bool]]:
        """Each document of the split as (its pieces of text, whether its end is the end of a document)."""
        for segment in self.splits[split]:
            with _mapped(segment) as data:
                start = segment.start
                while start < segment.end:
                    end, following = segment.end, segment.end
                    if self.separator is not None and (found := data.find(self.separator, start, segment.end)) >= 0:
                        end, following = found, found + len(self.separator)
                    if end > start:  # two separators in a row have no document between them
                        yield _pieces(data, start, end, segment.path), self.ends_documents
                    start = following

    def _write_tokens(self, tokenizer: Tokenizer, folder: Path) -> None:
        """Tokenize every split into `folder`, which appears only when it is complete."""
        from filelock import FileLock
        from tqdm import tqdm

        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # two runs started together tokenize once
            if (folder / "meta.json").exists():
                return
            temporary = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(temporary, ignore_errors=True)  # what a killed run left
            temporary.mkdir()
            try:
                size = sum(s.end - s.start for segments in self.splits.values() for s in segments)
                counts = {}
                with tqdm(total=size, unit="B", unit_scale=True, desc=f"tokenizing {self.name}", disable=None, delay=1) as bar:
                    for split in SPLITS:
                        with open(temporary / f"{split}.bin", "wb") as file:
                            for document, ends in self._documents(split):
                                for text in document:
                                    np.asarray(tokenizer.encode(text), dtype=dtype).tofile(file)
                                    bar.update(len(text.encode()))
                                if ends:
                                    np.asarray([tokenizer.end_of_text], dtype=dtype).tofile(file)
                            file.flush()
                            os.fsync(file.fileno())
                            counts[split] = file.tell() // dtype.itemsize
                meta = {"dtype": dtype.name, "tokens": counts, "corpus": self.fingerprint, "tokenizer": tokenizer.fingerprint}
                write_atomic(temporary / "meta.json", json.dumps(meta, indent=2) + "\n")
                shutil.rmtree(folder, ignore_errors=True)  # without a meta.json it is of no use
                os.replace(temporary, folder)
                fsync_folder(folder.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _content_hash(self, path: Path) -> str:
        """sha256 of a file, remembered in the cache for as long as its size and time of change stay the same."""
        stat = path.stat()
        key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
        memo = self.cache / "hashes" / f"{key}.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = json.loads(memo.read_text())
            if (known["size"], known["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
                return known["sha256"]
        digest = sha256_file(path)
        if stat.st_size > 1 << 26:  # smaller files are hashed again faster than a note is trusted
            write_atomic(memo, json.dumps({"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}))
        return digest


def _between(segments: list[Segment], start: int, end: int) -> list[Segment]:
    """The bytes [start, end) of the row of segments."""
    found, before = [], 0
    for segment in segments:
        low, high = max(segment.start, segment.start + start - before), min(segment.end, segment.start + end - before)
        if low < high:
            found.append(Segment(segment.path, low, high))
        before += segment.end - segment.start
    return found


@contextlib.contextmanager
def _mapped(segment: Segment) -> Iterator[mmap.mmap | bytes]:
    with open(segment.path, "rb") as file:
        if segment.end == segment.start:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _pieces(data: mmap.mmap | bytes, start: int, end: int, path: Path) -> Iterator[str]:
    """Decode [start, end) in pieces that can be tokenized one by one with the same result as the whole.

    No GPT-2 pre-token holds anything but white space after a character that is not white space, so a cut
    between the two never changes the tokens.
    """
    while start < end:
        stop = min(start + _PIECE, end)
        if stop < end:
            cut = stop
            while cut > start and not (data[cut : cut + 1].isspace() and not _ends_in_space(data[max(start, cut - 4) : cut])):
                cut -= 1
            if cut > start:
                stop = cut
            else:  # a megabyte without such a place: at least keep characters whole
                while stop < end and data[stop] & 0xC0 == 0x80:
                    stop += 1
        raw = data[start:stop]
        yield decode(raw, path, before=(data[i : min(i + _PIECE, start)] for i in range(0, start, _PIECE)))
        start = stop


def _ends_in_space(raw: bytes) -> bool:
    """Whether the last character of these bytes is white space, be it of one byte or of several."""
    return raw[-1:].isspace() or raw.decode("utf-8", errors="ignore")[-1:].isspace()


def _users_files(path: str) -> list[Path]:
    """The files that `path` (a file, a folder, or a glob) stands for, in sorted order."""
    if os.path.isdir(path):
        files = sorted(p for p in Path(path).rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not files:
            raise UserError(f"data.path={path}: the folder holds no {' or '.join(sorted(_SUFFIXES))} file")
        return files
    if os.path.isfile(path):
        return [Path(path)]
    files = sorted(Path(p) for p in glob.glob(path, recursive=True) if os.path.isfile(p))
    if not files:
        raise UserError(f"data.path={path}: no such file, folder or glob match")
    return files


# The paragraphs "Produced by ..." and "End of the Project Gutenberg EBook of ..." stand inside the two lines.
_GUTENBERG_START = re.compile(rb"\*\*\* START OF [^\n]*\n\s*((Produced|E-text prepared) by ([^\r\n]+\r?\n)+)?\s*")
_GUTENBERG_END = re.compile(rb"\s*(End of (the )?Project Gutenberg([^\r\n]+\r?\n)+\s*)?\*\*\* END OF ")


def _without_gutenberg(path: Path) -> Segment:
    """The part of a Project Gutenberg file between its START and END lines, without the publisher's own words."""
    with _mapped(Segment(path, 0, path.stat().st_size)) as data:
        start = _GUTENBERG_START.search(data)
        end = _GUTENBERG_END.search(data, start.end()) if start else None
        if not end:
            raise UserError(f"{path}: data.strip=gutenberg, but there are no '*** START OF' and '*** END OF' lines")
        return Segment(path, start.end(), end.start())


def _map_tokens(path: Path, dtype: str, n: int) -> np.ndarray:
    if n == 0:
        return np.empty(0, dtype=dtype)
    if path.stat().st_size != n * np.dtype(dtype).itemsize:
        raise UserError(f"{path} is damaged (its size is wrong); delete the folder {path.parent} and start again")
    return np.memmap(path, dtype=dtype, mode="r", shape=(n,))
