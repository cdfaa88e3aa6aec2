"""Getting a public file once, checked, into the cache."""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from gpt2x.data.config import name_in_cache
from gpt2x.errors import UserError
from gpt2x.files import sha256_file, write_atomic

log = logging.getLogger(__name__)
_CHUNK = 1 << 20


class Unreachable(UserError):
    """No address has given the file; `reason` is the last one's, a line."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}\n  {remedy}\n  What was fetched so far is kept; the next try goes on from there.")
        self.reason = reason


def fetch(
    url: str,
    *also: str,
    file: str,
    sha256: str | None,
    cache: Path,
    mirror: Path | None = None,
    member: str | None = None,
    archive_sha256: str | None = None,
    n_bytes: int | None = None,
    pinned_by: str | None = "data.sha256",
) -> Path:
    """The local path of `url`'s content: from the mirror folder, else the cache, else the network.

    `file` is its name in both folders. A download goes to `file`.part, is resumed there after an
    interruption, and is renamed only once its sha256, and the number of its bytes where `n_bytes` tells it, is right. Where
    no hash is published (`sha256` None), that of the first download is kept beside the file, with the address, and checked
    from then on. `also` are other addresses of the same content, each of which is tried where those before it fail; what
    one has begun the next goes on with.
    With `member`, `url` is a zip (its hash: `archive_sha256`), fetched and kept in the same way where the file
    is not to be had, and the file is that member of it. `pinned_by` is the setting, if any, that messages about the hash name.
    Raises UserError where the file cannot be had or is not what it should be.
    """
    if mirror is not None and (found := Path(mirror) / file).is_file():
        if _is_it(found, sha256, n_bytes):
            return found
        log.warning("%s in the mirror is not the file that is meant (its sha256 or size is another); looking further", found)
    from filelock import FileLock

    content = url if member is None else f"{member} in {url}"
    target = Path(cache) / file
    remembered = target.with_name(target.name + ".sha256")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # two runs started together download it once
        if sha256 is None and remembered.exists():
            sha256, _, source = remembered.read_text().strip().partition(" ")
            if source and source != content:
                raise UserError(
                    f"{target} is another file of the same name, fetched from {source}.\n"
                    f"  Give the one from {content} a name of its own: data.file=NAME."
                )
        if target.exists():
            if _is_it(target, sha256, n_bytes):
                return target
            log.warning("%s is damaged (its sha256 is another); fetching it again", target)
            target.unlink()
        part = target.with_name(target.name + ".part")
        if member is None:
            actual = _from_any((url, *also), part, target, sha256, n_bytes, pinned_by)
        else:
            name, pin = name_in_cache(url), "data.archive_sha256"
            _extract(fetch(url, file=name, sha256=archive_sha256, cache=cache, mirror=mirror, pinned_by=pin), member, part)
            actual = _checked(content, part, sha256, n_bytes, pinned_by)
        write_atomic(remembered, f"{actual} {content}\n")
        os.replace(part, target)
    return target


def _is_it(path: Path, sha256: str | None, n_bytes: int | None) -> bool:
    return n_bytes in (None, path.stat().st_size) and (sha256 is None or sha256_file(path) == sha256)


def _from_any(
    urls: tuple[str, ...], part: Path, target: Path, sha256: str | None, n_bytes: int | None, pinned_by: str | None
) -> str:
    """Download to `part` from the first of `urls` that has the content; returns its sha256."""
    for url in urls:
        try:
            _download(url, part, target, n_bytes)
            return _checked(url, part, sha256, n_bytes, pinned_by)
        except UserError as error:
            if url == urls[-1]:
                raise
            log.warning("%s; trying another source", str(error).partition("\n")[0])
    raise AssertionError("there is no address")


def _checked(content: str, part: Path, sha256: str | None, n_bytes: int | None, pinned_by: str | None) -> str:
    """The sha256 of a whole download, which is thrown away if it is not what it should be."""
    actual, size = sha256_file(part), part.stat().st_size
    if sha256 not in (None, actual):
        wrong = f"its sha256 is {actual}, it should be {sha256}"
        remedy = f" If the publisher changed the file on purpose, set {pinned_by}={actual}." if pinned_by else ""
    elif n_bytes not in (None, size):
        wrong, remedy = f"it has {size:,} bytes, it should have {n_bytes:,}", ""
    else:
        return actual
    part.unlink()
    raise UserError(f"{content} does not have the expected content: {wrong}.\n  The download was thrown away.{remedy}")


def _download(url: str, part: Path, target: Path, n_bytes: int | None) -> None:
    """Append to `part` what it still lacks of `url`. Of a file that has not `n_bytes` bytes nothing is downloaded."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "gpt2x"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            if have and answer.status != 206:  # the server sends the whole file again
                have = 0
            rest = answer.headers.get("Content-Length")
            total = have + int(rest) if rest else None
            if None not in (n_bytes, total) and total != n_bytes:
                if have:
                    part.unlink()  # the beginning of that other file, perhaps
                raise UserError(f"{url} is another file: it has {total:,} bytes, and {n_bytes:,} are expected")
            with (
                open(part, "ab" if have else "wb") as file,
                tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=target.name, disable=None) as bar,
            ):
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
                file.flush()
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: the part is already complete
            return
        raise _unreachable(url, target, f"HTTP status {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: the url is none
        raise _unreachable(url, target, getattr(error, "reason", error)) from error
    if total is not None and part.stat().st_size < total:
        raise _unreachable(url, target, f"the connection broke after {part.stat().st_size:,} of {total:,} bytes")


def _extract(archive: Path, member: str, part: Path) -> None:
    """Write the archive's `member` to `part`."""
    try:
        with zipfile.ZipFile(archive) as opened:
            if member not in opened.namelist():
                held = ", ".join(opened.namelist()[:10]) or "nothing"
                raise UserError(f"data.member={member}: {archive} holds no such file; it holds {held}")
            with opened.open(member) as packed, open(part, "wb") as file:
                shutil.copyfileobj(packed, file, _CHUNK)
                file.flush()
                os.fsync(file.fileno())
    # zipfile says NotImplementedError of a compression that it does not know, RuntimeError of what is encrypted.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{archive} cannot be unpacked: {error}\n"
            f"  Delete it to fetch it again; where data.url is no zip but the file itself, leave out data.member."
        ) from error


def _unreachable(url: str, target: Path, reason: object) -> Unreachable:
    return Unreachable(
        f"cannot fetch {url}: {reason}",
        f"Without a network, put the file at {target}\n"
        f"  or name a folder that holds {target.name}: paths.mirror=FOLDER, or GPT2X_MIRROR=FOLDER in the environment.",
    )
