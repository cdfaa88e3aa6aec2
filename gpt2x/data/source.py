"""What all kinds of data do with their file: find it, and read it as UTF-8.

The settings that say where it lies are those of SourceConfig; what comes out is a path, or text.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gpt2x.data.config import name_in_cache
from gpt2x.data.fetch import fetch
from gpt2x.errors import UserError


def shipped_or_fetched(
    *,
    builtin: str | None,
    url: str | None,
    member: str | None,
    archive_sha256: str | None,
    file: str | None,
    sha256: str | None,
    cache: Path,
    mirror: Path | None,
) -> Path:
    """The file that ships with the package as `builtin`, or the one fetched from `url` (see `fetch`)."""
    if builtin is not None:
        return Path(__file__).with_name(builtin)
    return fetch(
        url,
        file=name_in_cache(url, member, file),
        sha256=sha256,
        cache=Path(cache) / "downloads",
        mirror=mirror,
        member=member,
        archive_sha256=archive_sha256,
    )


def decode(raw: bytes, path: Path, before: Iterable[bytes] = ()) -> str:
    """`raw`, a part of the file `path`, as UTF-8 text. `before` is what precedes it there, in pieces.

    Raises UserError where it is none, with the line and the byte in the file; only then is `before` read.
    """
    if b"\0" in raw:
        at = sum(map(len, before)) + raw.index(0)
        raise UserError(f"{path}: byte {at:,} is NUL, so this is a binary file, or UTF-16, not UTF-8 text")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        lines, at = raw[: error.start].count(b"\n") + 1, error.start
        for piece in before:
            lines, at = lines + piece.count(b"\n"), at + len(piece)
        raise UserError(
            f"{path}: not valid UTF-8 in line {lines:,} (byte {at:,} is 0x{raw[error.start]:02x})\n"
            f"  Convert the file first, for example: iconv -f LATIN1 -t UTF-8 {path.name}"
        ) from error
