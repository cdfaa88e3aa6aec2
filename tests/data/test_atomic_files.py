"""write_atomic: the old file or the new one, whole, whatever fails."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpt2x.files import fsync_folder, sha256_file, write_atomic

resource = pytest.importorskip("resource", reason="limits on file sizes need a POSIX system")


@pytest.fixture
def old(tmp_path) -> Path:
    path = tmp_path / "folder" / "file.json"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def assert_untouched(old: Path) -> None:
    assert old.read_bytes() == b"old"
    assert [p.name for p in old.parent.iterdir()] == ["file.json"]  # nothing temporary


@pytest.mark.parametrize(
    ("data", "expected"), [("é\n\r\n", b"\xc3\xa9\n\r\n"), (b"\x00\xff", b"\x00\xff"), ("", b""), (b"x" * 10**7, b"x" * 10**7)]
)
def test_it_writes_text_as_utf8_and_bytes_as_they_are(tmp_path, data, expected):
    path = tmp_path / "new" / "folders" / "file"
    for _ in range(2):  # new, then in place of itself
        write_atomic(str(path), data)
        assert path.read_bytes() == expected
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_step_leaves_the_old_file(old, monkeypatch, call, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        write_atomic(old, "new")
    assert_untouched(old)


def test_a_disk_that_takes_only_a_part_leaves_the_old_file(old):
    """The system itself refuses to let the file grow, in the middle of the writing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomic(old, b"x" * (1 << 21))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_untouched(old)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A file system of 64 kB of its own, where one may mount it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = (
        "import sys, errno, pathlib; from gpt2x.files import write_atomic\n"
        "old = pathlib.Path(sys.argv[1], 'file.json'); write_atomic(old, 'old')\n"
        "try: write_atomic(old, bytes(1 << 20))\n"
        "except OSError as error: print(error.errno == errno.ENOSPC, old.read_text(), [p.name for p in old.parent.iterdir()])\n"
    )
    mount = 'mount -t tmpfs -o size=64k tmpfs "$2" || exit 77; exec "$0" -c "$1" "$2"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, sys.executable, program, str(disk)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare command here")
    if done.returncode and "gpt2x" not in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert (done.stdout, done.stderr) == ("True old ['file.json']\n", "")


def test_a_process_killed_while_writing_leaves_the_old_file(old):
    program = (
        "import os, sys, signal; from gpt2x import files\n"
        "os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomic(sys.argv[1], 'new')"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", program, str(old)], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert old.read_bytes() == b"old"
    write_atomic(old, "new")  # and what it left is in nobody's way
    assert old.read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_permissions_follow_the_umask(tmp_path, umask, expected):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", "text")
        after = os.umask(umask)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == expected
    assert after == umask  # looked at, not changed


def test_readers_see_whole_files_only(tmp_path):
    path, contents, seen, done = tmp_path / "file", [bytes([i]) * 100_000 for i in range(2)], [], threading.Event()
    write_atomic(path, contents[0])

    def read():
        while not done.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40):
        write_atomic(path, contents[i % 2])
    done.set()
    reader.join()
    assert seen
    assert all(content in contents for content in seen)


def test_the_folder_is_synced_after_the_renaming(tmp_path, monkeypatch):
    """Otherwise a power cut may undo the renaming; that cannot be tried here, so the order of calls is looked at."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    write_atomic(tmp_path / "file", "text")
    assert calls == ["fsync", "replace", "fsync"]
    with pytest.raises(FileNotFoundError):
        fsync_folder(tmp_path / "missing")


def test_sha256_of_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    path.write_bytes(b"")
    assert sha256_file(str(path)) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    path.write_bytes(os.urandom(3_000_001))
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
