"""Fetching from a real server on the loopback: checked, resumed, remembered, and never half there."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import CONTENT, SHA256, Server, served

from gpt2x.data.fetch import fetch
from gpt2x.errors import UserError


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with served() as server:
        yield server


@pytest.fixture
def other(monkeypatch) -> Iterator[Server]:
    with served() as other:
        yield other


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "downloads"


def visible(folder: Path) -> set[str]:
    """What lies in the cache beside locks and notes."""
    return {p.name for p in folder.iterdir() if p.suffix not in (".lock", ".sha256")} if folder.exists() else set()


# -- what works ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sha256", [SHA256, None])
@pytest.mark.parametrize("chunked", [False, True])
def test_it_downloads_once(server, cache, sha256, chunked):
    server.chunked = chunked
    path = fetch(server.url(), file="name.txt", sha256=sha256, cache=cache)
    assert path == cache / "name.txt"
    assert path.read_bytes() == CONTENT
    assert fetch(server.url(), file="name.txt", sha256=sha256, cache=cache) == path
    assert server.requests == [None]
    assert visible(cache) == {"name.txt"}


def test_an_empty_file_is_a_file(server, cache):
    server.content = b""
    assert fetch(server.url(), file="name.txt", sha256=hashlib.sha256(b"").hexdigest(), cache=cache).read_bytes() == b""


def test_an_interrupted_download_goes_on_where_it_broke(server, cache):
    server.cut_at = 100_000
    with pytest.raises(UserError, match=r"the connection broke after 100,000 of 256,000 bytes") as error:
        fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache)
    assert "the next try goes on from there" in str(error.value)
    assert visible(cache) == {"name.txt.part"}  # nothing that could be taken for the file
    with pytest.raises(UserError, match="200,000 of 256,000"):
        fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache)
    server.cut_at = None
    assert fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=200000-"]
    assert visible(cache) == {"name.txt"}


def test_a_server_that_cannot_resume_is_asked_for_all_of_it(server, cache):
    server.cut_at, server.ranges = 100_000, False
    with pytest.raises(UserError, match="the connection broke"):
        fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache)
    server.cut_at = None
    assert fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-"]


def test_an_answer_of_unknown_length_that_breaks_off_is_noticed_and_resumed(server, cache):
    server.chunked, server.cut_at = True, 100_000
    with pytest.raises(UserError, match="cannot fetch"):
        fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache)
    assert "name.txt" not in visible(cache)
    server.cut_at = None
    assert fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache).read_bytes() == CONTENT


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_part_that_is_already_whole_is_taken(server, cache, sha256):
    cache.mkdir(parents=True)
    (cache / "name.txt.part").write_bytes(CONTENT)  # killed between the last byte and the renaming
    assert fetch(server.url(), file="name.txt", sha256=sha256, cache=cache).read_bytes() == CONTENT
    assert server.requests == ["bytes=256000-"]


def test_a_damaged_file_in_the_cache_is_fetched_again(server, cache, caplog):
    path = fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache).read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert f"{path} is damaged" in caplog.text


def test_a_file_put_there_by_hand_needs_no_server(cache):
    cache.mkdir(parents=True)
    (cache / "name.txt").write_bytes(CONTENT)
    for sha256 in (SHA256, None):
        assert fetch("http://127.0.0.1:9/name.txt", file="name.txt", sha256=sha256, cache=cache) == cache / "name.txt"


def test_two_processes_at_once_download_once(server, cache):
    server.seconds = 0.5
    program = "import sys; from gpt2x.data.fetch import fetch; from pathlib import Path; url, sha256, cache = sys.argv[1:]\n"
    program += "print(fetch(url, file='name.txt', sha256=sha256, cache=Path(cache)).read_bytes() == bytes(range(256)) * 1000)"
    command = [sys.executable, "-c", program, server.url(), SHA256, str(cache)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate(timeout=60)[0] for run in runs] == ["True\n", "True\n"]
    assert server.requests == [None]


# -- several sources ----------------------------------------------------------------------------------------


def test_where_the_first_source_is_down_the_second_goes_on_with_what_there_is(server, other, cache, caplog):
    server.cut_at = 100_000
    assert fetch(server.url(), other.url(), file="name.txt", sha256=SHA256, cache=cache).read_bytes() == CONTENT
    assert (server.requests, other.requests) == ([None], ["bytes=100000-"])
    assert f"cannot fetch {server.url()}: the connection broke after 100,000 of 256,000 bytes; trying another" in caplog.text
    server.status = 503
    assert fetch(server.url(), other.url(), file="b.txt", sha256=SHA256, cache=cache).read_bytes() == CONTENT


def test_where_the_first_source_has_something_else_the_second_is_asked_for_all_of_it(server, other, cache, caplog):
    server.content = CONTENT[:-1] + b"!"
    assert fetch(server.url(), other.url(), file="name.txt", sha256=SHA256, cache=cache).read_bytes() == CONTENT
    assert (server.requests, other.requests) == ([None], [None])
    assert f"{server.url()} does not have the expected content" in caplog.text


def test_where_no_source_has_it_the_last_one_is_complained_of(server, other, cache):
    server.status, other.content = 404, b"something else"
    with pytest.raises(UserError, match=re.escape(f"{other.url()} does not have the expected content")) as error:
        fetch(server.url(), other.url(), file="name.txt", sha256=SHA256, cache=cache, pinned_by=None)
    assert "set " not in str(error.value)
    assert visible(cache) == set()


# -- a known size -------------------------------------------------------------------------------------------


def test_a_page_in_place_of_the_file_is_not_downloaded_and_nothing_is_lost(server, other, cache, caplog):
    other.cut_at = 100_000
    with pytest.raises(UserError, match="the connection broke"):
        fetch(other.url(), file="name.txt", sha256=None, n_bytes=len(CONTENT), cache=cache)
    server.content, server.ranges, other.cut_at = b"<html>Log in first</html>", False, None
    path = fetch(server.url(), other.url(), file="name.txt", sha256=None, n_bytes=len(CONTENT), cache=cache)
    assert path.read_bytes() == CONTENT
    assert other.requests == [None, "bytes=100000-"]
    assert f"{server.url()} is another file: it has 25 bytes, and 256,000 are expected" in caplog.text


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_of_another_size_is_refused_even_without_a_hash(server, cache, chunked):
    server.chunked = chunked
    with pytest.raises(UserError, match="256,000 bytes.*255,999"):
        fetch(server.url(), file="name.txt", sha256=None, n_bytes=len(CONTENT) - 1, cache=cache)
    assert visible(cache) == set()


def test_a_file_of_another_size_in_the_mirror_or_the_cache_is_passed_over(server, cache, tmp_path, caplog):
    for folder in (cache, tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name.txt").write_bytes(CONTENT[:-1])
    path = fetch(server.url(), file="name.txt", sha256=None, n_bytes=len(CONTENT), cache=cache, mirror=tmp_path)
    assert (path, path.read_bytes()) == (cache / "name.txt", CONTENT)
    assert str(tmp_path / "name.txt") in caplog.text


# -- the mirror ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_the_mirror_comes_first_and_nothing_is_copied(server, cache, tmp_path, sha256):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "name.txt").write_bytes(CONTENT)
    assert fetch(server.url(), file="name.txt", sha256=sha256, cache=cache, mirror=mirror) == mirror / "name.txt"
    assert server.requests == []
    assert not cache.exists()


def test_a_mirror_with_another_content_or_without_the_file_is_passed_over(server, cache, tmp_path, caplog):
    mirror = tmp_path / "mirror"
    assert fetch(server.url(), file="a.txt", sha256=SHA256, cache=cache, mirror=mirror) == cache / "a.txt"
    mirror.mkdir()
    assert fetch(server.url(), file="b.txt", sha256=SHA256, cache=cache, mirror=mirror) == cache / "b.txt"
    assert not caplog.records
    (mirror / "c.txt").write_bytes(CONTENT + b"\n")
    assert fetch(server.url(), file="c.txt", sha256=SHA256, cache=cache, mirror=mirror) == cache / "c.txt"
    assert str(mirror / "c.txt") in caplog.text
    assert (mirror / "c.txt").read_bytes() == CONTENT + b"\n"  # a mirror is read, never changed
    assert len(server.requests) == 3


# -- a file inside a zip ------------------------------------------------------------------------------------


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def archive(server) -> dict:
    """What to fetch: `name` in an archive that the server has."""
    server.content = zipped(readme=b"about", name=CONTENT)
    pinned = dict(sha256=SHA256, archive_sha256=hashlib.sha256(server.content).hexdigest())
    return dict(url=server.url("a+b.zip"), file="name.txt", member="name", **pinned)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_member_is_taken_out_of_the_zip_once(server, cache, archive, pinned):
    if not pinned:
        archive |= dict(sha256=None, archive_sha256=None)
    path = fetch(cache=cache, **archive)
    assert path == cache / "name.txt"
    assert path.read_bytes() == CONTENT
    assert visible(cache) == {"name.txt", "a+b.zip"}
    assert fetch(cache=cache, **archive) == path
    (cache / "a+b.zip").unlink()
    assert fetch(cache=cache, **archive) == path  # the zip is not asked for again
    path.write_bytes(b"damaged")
    assert fetch(cache=cache, **archive).read_bytes() == CONTENT
    assert server.requests == [None, None]


def test_the_mirror_may_hold_the_file_or_the_zip(server, cache, archive, tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "a+b.zip").write_bytes(server.content)
    assert fetch(cache=cache, mirror=mirror, **archive) == cache / "name.txt"
    (mirror / "name.txt").write_bytes(CONTENT)
    assert fetch(cache=cache, mirror=mirror, **archive) == mirror / "name.txt"
    assert server.requests == []


def test_a_broken_download_of_a_zip_goes_on_where_it_broke(server, cache, archive):
    server.cut_at = 500
    with pytest.raises(UserError, match="the connection broke after 500 of"):
        fetch(cache=cache, **archive)
    assert visible(cache) == {"a+b.zip.part"}
    server.cut_at = None
    assert fetch(cache=cache, **archive).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=500-"]


def test_another_zip_or_another_member_than_the_pinned_one_is_refused(server, cache, archive):
    server.content = zipped(name=CONTENT, more=b"")
    actual = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(UserError, match=rf"{actual}, it should be (.|\n)*set data\.archive_sha256={actual}"):
        fetch(cache=cache, **archive)
    assert visible(cache) == set()
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(UserError, match=rf"name in http\S+ does not have the expected(.|\n)*set data\.sha256={SHA256}"):
        fetch(cache=cache, **archive | dict(archive_sha256=actual, sha256=other))
    assert visible(cache) == {"a+b.zip"}


def test_what_is_not_in_the_zip_or_no_zip_is_told(server, cache, archive):
    with pytest.raises(UserError, match=r"data\.member=nmae: .*a\+b\.zip holds no such file; it holds readme, name"):
        fetch(cache=cache, **archive | dict(member="nmae"))
    assert visible(cache) == {"a+b.zip"}
    whole = server.content
    for number, content in enumerate((b"no zip", b"", whole[:100] + b"!!!!" + whole[104:])):
        server.content = content
        url = server.url(f"{number}.zip")
        with pytest.raises(UserError, match=rf"{number}\.zip cannot be unpacked: (.|\n)*leave out data\.member"):
            fetch(cache=cache, **archive | dict(url=url, archive_sha256=None))
        assert not (cache / "name.txt").exists()


def test_another_member_with_the_same_file_name_is_not_served_from_the_cache(server, cache, archive):
    archive |= dict(sha256=None)
    fetch(cache=cache, **archive)
    with pytest.raises(UserError, match=r"fetched from name in http(.|\n)*data\.file=NAME"):
        fetch(cache=cache, **archive | dict(member="readme"))


# -- what is refused ----------------------------------------------------------------------------------------


def test_another_content_than_the_pinned_one_is_refused_and_thrown_away(server, cache):
    server.content = CONTENT + b"more"
    with pytest.raises(UserError) as error:
        fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache)
    actual = hashlib.sha256(CONTENT + b"more").hexdigest()
    for part in (server.url(), SHA256, actual, f"data.sha256={actual}"):
        assert part in str(error.value)
    assert visible(cache) == set()
    server.content = CONTENT
    assert fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache).read_bytes() == CONTENT


def test_a_part_of_another_version_is_thrown_away(server, cache):
    cache.mkdir(parents=True)
    (cache / "name.txt.part").write_bytes(b"an older version")
    with pytest.raises(UserError, match="does not have the expected content"):
        fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache)
    assert fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache).read_bytes() == CONTENT


def test_without_a_published_hash_the_first_one_is_remembered_and_then_checked(server, cache, caplog):
    path = fetch(server.url(), file="name.txt", sha256=None, cache=cache)
    path.write_bytes(b"damaged")
    assert fetch(server.url(), file="name.txt", sha256=None, cache=cache).read_bytes() == CONTENT
    assert "damaged" in caplog.text
    path.unlink()
    server.content = b"the publisher changed it"
    with pytest.raises(UserError, match="does not have the expected content") as error:
        fetch(server.url(), file="name.txt", sha256=None, cache=cache)
    changed = hashlib.sha256(server.content).hexdigest()
    assert f"data.sha256={changed}" in str(error.value)
    assert fetch(server.url(), file="name.txt", sha256=changed, cache=cache).read_bytes() == server.content


@pytest.mark.parametrize("pinned", [SHA256, None])
def test_another_address_with_the_same_file_name_is_not_served_from_the_cache(server, cache, pinned):
    fetch(server.url("a/input.txt"), file="input.txt", sha256=pinned, cache=cache)
    server.content = b"another corpus"
    with pytest.raises(UserError, match=r"data\.file=NAME") as error:
        fetch(server.url("b/input.txt"), file="input.txt", sha256=None, cache=cache)
    assert server.url("a/input.txt") in str(error.value)
    assert server.url("b/input.txt") in str(error.value)
    other = fetch(server.url("b/input.txt"), file="b-input.txt", sha256=None, cache=cache)
    assert other.read_bytes() == b"another corpus"
    assert (cache / "input.txt").read_bytes() == CONTENT


def says_what_to_do(message: str, url: str, cache: Path) -> bool:
    return all(part in message for part in (f"cannot fetch {url}", str(cache / "name.txt"), "paths.mirror=", "GPT2X_MIRROR="))


@pytest.mark.parametrize("status", [404, 403, 500])
def test_an_http_error_is_told_with_address_cache_and_mirror(server, cache, status):
    server.status = status
    with pytest.raises(UserError, match=f"HTTP status {status}") as error:
        fetch(server.url(), file="name.txt", sha256=SHA256, cache=cache)
    assert says_what_to_do(str(error.value), server.url(), cache)
    assert visible(cache) == set()


def test_a_dead_server_is_told_with_address_cache_and_mirror(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/name.txt"
    with pytest.raises(UserError, match="refused") as error:
        fetch(url, file="name.txt", sha256=SHA256, cache=cache)
    assert says_what_to_do(str(error.value), url, cache)


def test_a_server_that_hangs_up_or_talks_nonsense_is_told_too(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    for answer in (b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"):
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve(listener=listener, answer=answer):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(10_000)
                    connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/name.txt"
            with pytest.raises(UserError) as error:
                fetch(url, file="name.txt", sha256=SHA256, cache=cache)
            thread.join()
        assert says_what_to_do(str(error.value), url, cache)


@pytest.mark.parametrize("url", ["example.txt", "no-such-scheme://host/name.txt", "http://exa mple/name.txt", "http://[::1/x"])
def test_an_address_that_is_none_is_told(cache, url):
    with pytest.raises(UserError) as error:
        fetch(url, file="name.txt", sha256=None, cache=cache)
    assert says_what_to_do(str(error.value), url, cache)
