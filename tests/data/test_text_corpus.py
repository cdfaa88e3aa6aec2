"""Text corpora: every character exactly once, in the split where it belongs, and tokens that are never half there."""

from __future__ import annotations

import itertools
import json
import os
import signal
import string
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gpt2x.data.text
from gpt2x.config.compose import compose
from gpt2x.config.instantiate import instantiate
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import TrainConfig
from gpt2x.data.config import TextConfig
from gpt2x.data.text import TextCorpus, _pieces
from gpt2x.data.windows import WindowedData
from gpt2x.errors import UserError
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer

GPT2 = GPT2Tokenizer()
EOT = "<|endoftext|>\n"  # a separator between documents


def corpus(folder: Path, text: str | bytes | None = None, **fields) -> TextCorpus:
    """A corpus of one file with this text, or of what `fields` say; its cache is in `folder` too."""
    if text is not None:
        path = folder / "corpus.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        fields["path"] = str(path)
    return instantiate(TextConfig(**fields), cache=folder / "cache", mirror=None)


def configured(folder: Path, mirror: Path | None, *overrides: str) -> TextCorpus:
    """A corpus of configs/data."""
    config = compose("train", TrainConfig, list(overrides))
    return instantiate(config.data, cache=folder / "cache", mirror=mirror)


def split_texts(corpus: TextCorpus) -> list[str]:
    return ["".join(corpus.texts(split)) for split in ("train", "val", "test")]


def tokenized(corpus: TextCorpus, tokenizer, context_length: int = 1) -> WindowedData:
    return corpus.tokenize(tokenizer, context_length=context_length, seed=1)


def documents(tokens: np.ndarray, tokenizer) -> list[str]:
    """The texts that end with end-of-text; the last is what follows the last of these."""
    ends = [-1, *np.flatnonzero(tokens == tokenizer.end_of_text).tolist(), len(tokens)]
    return [tokenizer.decode(tokens[a + 1 : b]) for a, b in itertools.pairwise(ends)]


# -- pieces -------------------------------------------------------------------------------------------------

BLANKS = " \n\t\r\x0b\x0c"
ODD_BLANKS = BLANKS + "\x1c\x1f\x85\u00a0\u1680\u2003\u2009\u2028\u2029\u202f\u205f\u3000"
WORD = st.text("aZsdt09.,'\u2019!-é漢ß🦙\u0301\u200b\u200d", min_size=1, max_size=4)
# At most 16 + 12 + 16 + 1 + 9 = 54 bytes, with a blank after a word among them: every 64 bytes have a place to cut.
GROUP = st.tuples(WORD, st.text(ODD_BLANKS, max_size=4), WORD, st.sampled_from(BLANKS), st.text(ODD_BLANKS, max_size=3))


@settings(deadline=None, max_examples=300)
@given(st.lists(GROUP.map("".join), max_size=30).map("".join), st.text(ODD_BLANKS, max_size=4))
@example("it's   \n\n  'twas  \u00a0 we'll\r\n\r\n don't\u2003 stop " * 5, " ")
@example("a \u00a0b\u00a0 c " * 20, "  ")
def test_pieces_have_the_tokens_of_the_whole(text, start):
    text = start + text
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2x.data.text, "_PIECE", 64)
        pieces = list(_pieces(data, 0, len(data), Path("x")))
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= 64 for piece in pieces)
    ids = [i for piece in pieces for i in GPT2.encode(piece).tolist()]
    assert ids == GPT2.encode(text).tolist()


@pytest.mark.parametrize("blank", [" ", "\n", "\x85", "\u00a0", "\u1680", "\u2003", "\u2028", "\u3000"])
def test_no_piece_ends_inside_a_run_of_blanks_wherever_it_lies(monkeypatch, blank):
    monkeypatch.setattr(gpt2x.data.text, "_PIECE", 64)
    for offset in range(54, 68):
        text = ("ab " * 30)[:offset] + f"{blank}  y " + "ab " * 30
        data = text.encode()
        pieces = list(_pieces(data, 0, len(data), Path("x")))
        assert len(pieces) >= 3
        assert [i for piece in pieces for i in GPT2.encode(piece).tolist()] == GPT2.encode(text).tolist()
    data = f"a{blank}   ".encode() + b"b" * 100
    assert next(_pieces(data, 0, len(data), Path("x"))) == ("a" if blank.isascii() else data[:64].decode())


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=60), st.integers(1, 12))
def test_pieces_are_whole_characters_even_where_there_is_no_good_place(text, size):
    text = text.replace("\0", "")
    data = text.encode(errors="replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2x.data.text, "_PIECE", size)
        pieces = list(_pieces(data, 0, len(data), Path("x")))
    assert "".join(pieces) == data.decode()
    assert all(pieces)
    assert all(len(piece.encode()) <= size + 3 for piece in pieces)


@pytest.mark.parametrize("blanks", ["  ", "\n\n", " \u00a0 "])
def test_a_megabyte_of_text_is_cut_without_a_trace(tmp_path, blanks):
    unit = f"Word{blanks}after word,{blanks}and it\u2019s 漢字{blanks}12 "
    text = unit * (1_100_000 // len(unit.encode()))
    made = corpus(tmp_path, text, val_fraction=0.0)
    assert len(list(made.texts())) == 2
    assert np.array_equal(tokenized(made, GPT2).splits["train"], GPT2.encode(text))


# -- splits -------------------------------------------------------------------------------------------------

FRACTIONS = st.tuples(st.integers(0, 50), st.integers(0, 30)).map(lambda p: (p[0] / 100, p[1] / 100))


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), fractions=FRACTIONS)
@example(text="🦙" * 50, fractions=(0.1, 0.0))
@example(text="é" * 10, fractions=(0.33, 0.33))
def test_splits_are_the_whole_text_in_order_cut_at_the_first_whole_character(text, fractions):
    val, test = fractions
    with tempfile.TemporaryDirectory() as folder:
        parts = split_texts(corpus(Path(folder), text, val_fraction=val, test_fraction=test))
    assert "".join(parts) == text
    n = len(text.encode())
    for position, nominal in ((len(parts[0].encode()), n * (1 - val - test)), (n - len(parts[2].encode()), n * (1 - test))):
        assert -1 <= position - nominal < 4  # a byte of rounding, and no more than the rest of one character


@settings(deadline=None, max_examples=60)  # each writes and syncs files
@given(
    docs=st.lists(st.text("ab é漢🦙", min_size=1, max_size=40), min_size=2, max_size=12),
    fractions=FRACTIONS,
    ends=st.booleans(),
    piece=st.integers(3, 50),
)
@example(docs=["a", "b"], fractions=(0.1, 0.0), ends=False, piece=50)  # both cuts fall into the last document
@example(docs=["a" * 40, "b", "c"], fractions=(0.05, 0.05), ends=True, piece=50)
def test_documents_stay_whole_in_order_and_each_ends_with_end_of_text(docs, fractions, ends, piece):
    val, test = fractions
    text = EOT.join(docs) + EOT * ends
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2x.data.text, "_PIECE", piece)
        made = corpus(Path(folder), text, separator=EOT, val_fraction=val, test_fraction=test)
        tokenizer = CharTokenizer.from_corpus(made.texts())
        parts = {split: documents(tokens, tokenizer) for split, tokens in tokenized(made, tokenizer).splits.items()}
    assert all(part[-1] == "" for part in parts.values())  # nothing after the last end-of-text
    found = [part[:-1] for part in parts.values()]
    assert [doc for part in found for doc in part] == docs
    assert not (val == 0 and found[1])
    assert not (test == 0 and found[2])
    longest = max(len((doc + EOT).encode()) for doc in docs)
    sizes = [sum(len((doc + EOT).encode()) for doc in part) for part in found]
    assert abs(sizes[0] - len(text.encode()) * (1 - val - test)) <= longest + len(EOT)
    assert sizes[2] <= len(text.encode()) * test + len(EOT) + 1 or len(found[2]) == 1


@pytest.mark.parametrize("text", ["é" * 20, "é" * 20 + EOT])
def test_a_document_is_cut_only_where_there_is_no_other(tmp_path, text):
    made = corpus(tmp_path, text, separator=EOT, val_fraction=0.3, test_fraction=0.2)
    parts = split_texts(made)
    assert "".join(parts) == "é" * 20
    assert len(parts[0]) >= 10


def test_a_late_cut_does_not_push_the_next_one(tmp_path):
    docs = ["x" * 996 for _ in range(10)]  # 1,000 bytes each with the separator
    made = corpus(tmp_path, "\n\n\n\n".join(docs), separator="\n\n\n\n", val_fraction=0.29, test_fraction=0.3)
    counts = [sum(1 for _ in made._documents(split)) for split in ("train", "val", "test")]
    assert counts == [5, 2, 3]  # cuts at 4.1 and 6.997 documents, each moved to the next document that starts


def test_two_separators_in_a_row_hold_no_document_between_them(tmp_path):
    made = corpus(tmp_path, f"{EOT}one{EOT}{EOT}{EOT}two{EOT}", separator=EOT, val_fraction=0.0)
    tokenizer = CharTokenizer.from_corpus(made.texts())
    assert documents(tokenized(made, tokenizer).splits["train"], tokenizer) == ["one", "two", ""]


def test_one_file_without_separator_has_no_end_of_text(tmp_path):
    made = corpus(tmp_path, "no separator here" * 10)
    tokenizer = CharTokenizer.from_corpus(made.texts())
    for tokens in tokenized(made, tokenizer).splits.values():
        assert tokenizer.end_of_text not in tokens


def test_texts_gives_the_splits_that_are_asked_for(tmp_path):
    made = corpus(tmp_path, "0123456789" * 10, val_fraction=0.2, test_fraction=0.1)
    train, val, test = split_texts(made)
    assert (len(train), len(val), len(test)) == (70, 20, 10)
    assert "".join(made.texts("train")) == train
    assert "".join(made.texts("val", "test")) == val + test
    assert "".join(made.texts()) == train + val + test


def test_a_fraction_of_nothing_leaves_the_split_empty(tmp_path):
    made = corpus(tmp_path, "x" * 100, val_fraction=0.0)
    data = tokenized(made, CharTokenizer("x"))
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [100, 0, 0]
    assert list(data.eval_batches("val")) == []


# -- files --------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path) -> Path:
    """A folder with five texts and three files that are none."""
    folder = tmp_path / "shelf"
    (folder / "deeper" / "still").mkdir(parents=True)
    for name in ("b.txt", "a.md", "deeper/C.TXT", "deeper/still/d.txt", "z.txt"):
        (folder / name).write_text(f"this is {name}.")
    for name in ("e.html", "deeper/data.bin", "txt"):
        (folder / name).write_text("no text")
    (folder / "folder.txt").mkdir()
    return folder


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a.md", "b.txt", "deeper/C.TXT", "deeper/still/d.txt", "z.txt"]),
        ("*.txt", ["b.txt", "z.txt"]),
        ("**/*.txt", ["b.txt", "deeper/still/d.txt", "z.txt"]),
        ("[ab].*", ["a.md", "b.txt"]),
        ("e.html", ["e.html"]),  # what is named is taken whatever its suffix
    ],
)
def test_a_folder_or_a_glob_stands_for_its_files_in_sorted_order(tmp_path, shelf, pattern, names):
    made = corpus(tmp_path, path=str(shelf / pattern), val_fraction=0.0)
    tokenizer = CharTokenizer.from_corpus(made.texts())
    texts = [(shelf / name).read_text() for name in names]
    found = documents(tokenized(made, tokenizer).splits["train"], tokenizer)
    assert found == ([*texts, ""] if len(names) > 1 else texts)  # several files: each is a document


def test_several_files_are_split_as_one_long_text(tmp_path):
    for i, size in enumerate([30, 0, 45, 25, 0]):  # empty files are no obstacle
        (tmp_path / f"{i}.txt").write_text(string.ascii_letters[i] * size)
    made = corpus(tmp_path, path=str(tmp_path / "*.txt"), val_fraction=0.3, test_fraction=0.2)
    assert split_texts(made) == ["a" * 30 + "c" * 20, "c" * 25 + "d" * 5, "d" * 20]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "notes[1].txt").write_text("the one")
    (tmp_path / "notes1.txt").write_text("another")
    assert "".join(corpus(tmp_path, path=str(tmp_path / "notes[1].txt")).texts()) == "the one"


def test_the_corpus_is_fetched_and_split(tmp_path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "book.txt").write_text("0123456789")
    for fields in ({"url": "http://127.0.0.1:9/some/book.txt"}, {"url": "http://127.0.0.1:9/x?y=z", "file": "book.txt"}):
        made = instantiate(TextConfig(**fields, val_fraction=0.3), cache=tmp_path, mirror=tmp_path / "mirror")
        assert split_texts(made) == ["0123456", "789", ""]


def test_a_text_may_lie_in_a_zip(tmp_path):
    (tmp_path / "mirror").mkdir()
    with zipfile.ZipFile(tmp_path / "mirror" / "books.zip", "w") as archive:
        archive.writestr("folder/book.txt", "0123456789")
    fields = dict(url="http://127.0.0.1:9/books.zip", member="folder/book.txt", val_fraction=0.3)
    made = instantiate(TextConfig(**fields), cache=tmp_path, mirror=tmp_path / "mirror")
    assert split_texts(made) == ["0123456", "789", ""]
    assert (tmp_path / "downloads" / "book.txt").read_text() == "0123456789"


# -- the corpora of configs/data ----------------------------------------------------------------------------


def test_tiny_shakespeare_is_split_as_everybody_splits_it(tmp_path, mirror):
    made = configured(tmp_path, mirror, "data=shakespeare")
    train, val, test = split_texts(made)
    assert (len(train), len(val), len(test)) == (1_003_854, 111_540, 0)
    text = (mirror / "tinyshakespeare-input.txt").read_text()
    assert train == text[: int(len(text) * 0.9)]  # nanoGPT's data/shakespeare_char/prepare.py
    assert val == text[int(len(text) * 0.9) :]
    tokenizer = CharTokenizer.from_corpus(made.texts())
    assert tokenizer.vocab_size == 65 + 1
    data = tokenized(made, tokenizer, context_length=256)
    assert (len(data.splits["train"]), len(data.splits["val"])) == (1_003_854, 111_540)
    assert not (tmp_path / "cache" / "downloads").exists()  # the mirror's file is not copied


def test_the_verdict_has_5145_tokens(tmp_path, mirror):
    data = tokenized(configured(tmp_path, mirror, "data=verdict", "data.val_fraction=0"), GPT2, context_length=256)
    assert len(data.splits["train"]) == 5_145
    assert GPT2.decode(data.splits["train"]) == (mirror / "the-verdict.txt").read_text()


def test_sherlock_is_conan_doyles_alone(tmp_path, mirror):
    text = "".join(configured(tmp_path, mirror, "data=sherlock").texts())
    assert text.startswith("THE ADVENTURES OF SHERLOCK HOLMES\r\n\r\nby\r\n\r\nSIR ARTHUR CONAN DOYLE")
    assert text.endswith("I believe that she has met with considerable success.")
    assert "gutenberg" not in text.lower()
    assert "***" not in text
    assert "XII. THE ADVENTURE OF THE COPPER BEECHES" in text
    assert len(text) > 570_000


GUTENBERG = """\ufeffThe Project Gutenberg EBook of Nothing, by Nobody\r
\r
*** START OF {} PROJECT GUTENBERG EBOOK NOTHING ***\r
\r
{}\r
\r
NOTHING\r
\r
It ended. *** Produced by chance, it was the End of the\r
world.\r
\r
{}*** END OF {} PROJECT GUTENBERG EBOOK NOTHING ***\r
\r
*** START: FULL LICENSE ***\r
"""


@pytest.mark.parametrize("word", ["THIS", "THE"])
@pytest.mark.parametrize("credit", ["", "Produced by A. Volunteer,\r\nB. Volunteer and others", "E-text prepared by C."])
@pytest.mark.parametrize("ending", ["", "End of the Project Gutenberg EBook of Nothing,\r\nby Nobody\r\n\r\n"])
@pytest.mark.parametrize("newline", ["\r\n", "\n"])
def test_what_project_gutenberg_puts_around_a_book_is_dropped(tmp_path, word, credit, ending, newline):
    text = GUTENBERG.format(word, credit, ending, word).replace("\r\n", newline)
    made = corpus(tmp_path, text, strip="gutenberg", val_fraction=0.2)
    expected = "NOTHING\r\n\r\nIt ended. *** Produced by chance, it was the End of the\r\nworld."
    assert "".join(made.texts()) == expected.replace("\r\n", newline)


@pytest.mark.parametrize("text", ["", "A book.", "*** END OF X\n*** START OF X\n", "*** START OF X ***\nand no end"])
def test_a_file_without_gutenbergs_lines_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"corpus.txt: data.strip=gutenberg, but there are no '\*\*\* START OF'"):
        corpus(tmp_path, text, strip="gutenberg")


def test_the_storybook_is_there_without_a_network(tmp_path):
    made = configured(tmp_path, None, "data=storybook")
    raw = (Path(gpt2x.data.text.__file__).parent / "storybook.txt").read_bytes()
    assert len(raw) >= 100_000
    assert raw.isascii()
    assert not set(raw) - set(string.printable.encode()) | set(b"\r\t\x0b\x0c") & set(raw)
    stories = raw.decode().split("\n\n\n")
    assert len(stories) >= 50
    assert all(story.strip() == story.rstrip("\n") and len(story) > 200 for story in stories)
    bare = [" ".join(story.lower().split()) for story in stories]
    assert len(set(bare)) == len(stories)
    titles = [story.split("\n")[0] for story in stories]
    assert len(set(titles)) == len(titles)
    sentences = [s.strip() for story in bare for s in story.split(".") if len(s) > 60]
    assert len(set(sentences)) > 0.99 * len(sentences)  # and no long passage twice
    tokenizer = CharTokenizer.from_corpus(made.texts())
    data = tokenized(made, tokenizer, context_length=128)
    found = [documents(data.splits[split], tokenizer)[:-1] for split in ("train", "val")]
    assert found[0] + found[1] == stories
    assert len(found[1]) >= 5


# -- what is refused ----------------------------------------------------------------------------------------


def reading_fails(folder: Path, data: bytes) -> str:
    with pytest.raises(UserError) as error:
        list(corpus(folder, data).texts())
    assert str(folder / "corpus.txt") in str(error.value)
    return str(error.value)


@settings(deadline=None, max_examples=100)
@given(
    before=st.text("ab \né漢", max_size=60),
    bad=st.sampled_from([b"\xff", b"\xe9t\xe9", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\x80"]),
    after=st.text("cd \n", max_size=60),
    piece=st.integers(8, 60),
)
def test_bytes_that_are_no_utf8_are_named_by_line_and_place(before, bad, after, piece):
    data = before.encode() + bad + after.encode()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2x.data.text, "_PIECE", piece)
        with pytest.raises(UserError) as error:
            list(corpus(Path(folder), data).texts())
    line, place = before.count("\n") + 1, len(before.encode())
    assert f"not valid UTF-8 in line {line} (byte {place} is 0x{bad[0]:02x})" in str(error.value)
    assert "iconv -f LATIN1 -t UTF-8 corpus.txt" in str(error.value)


def test_a_character_cut_off_by_the_end_of_the_file_is_named(tmp_path):
    assert "in line 2 (byte 3 is 0xc3)" in reading_fails(tmp_path, b"ab\n\xc3")


@pytest.mark.parametrize("data", [b"text and \0 more", "text".encode("utf-16"), b"\x7fELF\x02\x01\x01\0\0\0"])
def test_a_binary_file_is_called_one(tmp_path, data):
    assert f"byte {data.index(0)} is NUL, so this is a binary file" in reading_fails(tmp_path, data)


def test_a_bad_file_leaves_no_tokens(tmp_path):
    made = corpus(tmp_path, b"a" * 500 + b"\xff" + b"a" * 500)
    for _ in range(2):
        with pytest.raises(UserError, match="not valid UTF-8"):
            tokenized(made, GPT2)
    assert not [p for p in (tmp_path / "cache" / "tokens").iterdir() if p.suffix != ".lock"]


def test_an_empty_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data=text: the text is empty .*corpus\.txt"):
        corpus(tmp_path, "")
    (tmp_path / "empty").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "empty" / name).touch()
    with pytest.raises(UserError, match=r"the text is empty .*a\.txt, .*b\.txt"):
        corpus(tmp_path, path=str(tmp_path / "empty"))


def test_a_path_from_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine.txt").write_text("my own words " * 100)
    config = TextConfig(path="~/mine.txt")
    config.check_available()
    corpus = instantiate(config, cache=tmp_path / "cache", mirror=None)
    assert next(corpus.texts("train")).startswith("my own words")


def test_missing_texts_are_named(tmp_path):
    for path in (tmp_path / "missing.txt", tmp_path / "*.txt"):
        with pytest.raises(UserError, match="no such file, folder or glob match") as error:
            corpus(tmp_path, path=str(path))
        assert str(path) in str(error.value)
        with pytest.raises(ConfigError, match="no such file, folder or glob match"):
            TextConfig(path=str(path)).check_available()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "page.html").touch()
    TextConfig(path=str(tmp_path / "fold*")).check_available()
    with pytest.raises(UserError, match=r"the folder holds no \.md or \.txt file"):
        corpus(tmp_path, path=str(tmp_path / "folder"))


def test_a_text_too_short_for_the_context_is_refused_by_name(tmp_path):
    made = corpus(tmp_path, "x" * 100, name="notes")
    with pytest.raises(UserError, match=r"data=notes: the training split has 90 tokens.* \+ 1 = 129"):
        tokenized(made, CharTokenizer("x"), context_length=128)


def test_exactly_one_source_is_wanted():
    with pytest.raises(ConfigError, match="no file given"):
        TextConfig().check()
    with pytest.raises(ConfigError, match=r"several sources \(url, path\)"):
        TextConfig(url="http://127.0.0.1/x", path=__file__).check()
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        TextConfig(path=__file__, val_fraction=0.5, test_fraction=0.5).check()
    TextConfig(path=__file__, val_fraction=0.5, test_fraction=0.4).check()


# -- the cache of tokens ------------------------------------------------------------------------------------


class Counting(CharTokenizer):
    """Characters, counting how much text was encoded; after `fail_after` pieces it fails."""

    def __init__(self, characters: str):
        super().__init__(characters)
        self.pieces, self.fail_after = 0, 10**9

    def encode(self, text: str) -> np.ndarray:
        if self.pieces >= self.fail_after:
            raise RuntimeError("as ordered")
        self.pieces += 1
        return super().encode(text)


LETTERS = "".join(sorted(string.ascii_letters + " \n"))


def token_folders(folder: Path) -> list[Path]:
    return [p for p in (folder / "cache" / "tokens").iterdir() if p.is_dir()]


def test_text_is_tokenized_once(tmp_path):
    tokenizer = Counting(LETTERS)
    first = tokenized(corpus(tmp_path, "some text " * 50), tokenizer)
    n = tokenizer.pieces
    assert n == 2  # train and val
    again = tokenized(corpus(tmp_path, "some text " * 50), tokenizer)
    other_instance = Counting(LETTERS)
    tokenized(corpus(tmp_path, "some text " * 50), other_instance)
    assert (tokenizer.pieces, other_instance.pieces) == (n, 0)
    assert all(np.array_equal(first.splits[split], again.splits[split]) for split in ("train", "val", "test"))
    assert len(token_folders(tmp_path)) == 1


def test_batching_does_not_ask_for_new_tokens(tmp_path):
    tokenizer = Counting(LETTERS)
    tokenized(corpus(tmp_path, "some text " * 50), tokenizer)
    made = corpus(tmp_path, "some text " * 50, batch_size=3, eval_batch_size=5, stride=2, drop_last=True, shuffle=False)
    data = made.tokenize(tokenizer, context_length=7, seed=5)
    assert tokenizer.pieces == 2
    assert (data.batch_size, data.eval_batch_size, data.stride, data.drop_last, data.shuffle) == (3, 5, 2, True, False)
    assert (data.context_length, data.seed, data.name) == (7, 5, "text")
    assert tokenized(corpus(tmp_path, "some text " * 50, batch_size=3), tokenizer).eval_batch_size == 3


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("some test " * 50, {}),  # one character, at the same size
        ("some text " * 50, {"val_fraction": 0.2}),
        ("some text " * 50, {"test_fraction": 0.1}),
        ("some text " * 50, {"separator": "x"}),
        ("some text " * 50, {"separator": "not in it"}),  # still: the document then ends with end-of-text
    ],
)
def test_another_text_or_split_has_other_tokens(tmp_path, text, fields):
    tokenizer, path = Counting(LETTERS), tmp_path / "corpus.txt"
    before = corpus(tmp_path, "some text " * 50)
    os.utime(path, ns=(10**18, 10**18))
    tokenized(before, tokenizer)
    path.write_text(text)
    os.utime(path, ns=(10**18, 10**18))  # the content counts, not the time
    after = corpus(tmp_path, path=str(path), **fields)
    pieces = tokenizer.pieces
    data = tokenized(after, tokenizer)
    assert tokenizer.pieces > pieces
    assert after.fingerprint != before.fingerprint
    assert len(token_folders(tmp_path)) == 2
    assert "".join(tokenizer.decode(data.splits[split]) for split in data.splits).startswith(text[:6])


def test_the_same_text_elsewhere_has_the_same_tokens(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    tokenizer = Counting(LETTERS)
    tokenized(corpus(tmp_path, "some text " * 50), tokenizer)
    (tmp_path / "elsewhere" / "other name.txt").write_text("some text " * 50)
    tokenized(corpus(tmp_path, path=str(tmp_path / "elsewhere")), tokenizer)
    assert tokenizer.pieces == 2


def test_another_tokenizer_has_other_tokens(tmp_path):
    made = corpus(tmp_path, "some text " * 50)
    one, other = tokenized(made, CharTokenizer(LETTERS)), tokenized(made, CharTokenizer(LETTERS + "é"))
    assert len(token_folders(tmp_path)) == 2
    assert np.array_equal(one.splits["train"], other.splits["train"])


def test_a_tokenizer_that_fails_leaves_nothing_that_looks_complete(tmp_path):
    tokenizer = Counting(LETTERS)
    tokenizer.fail_after = 1
    with pytest.raises(RuntimeError, match="as ordered"):
        tokenized(corpus(tmp_path, "some text " * 50), tokenizer)
    assert token_folders(tmp_path) == []
    tokenizer.fail_after = 10**9
    data = tokenized(corpus(tmp_path, "some text " * 50), tokenizer)
    assert tokenizer.decode(data.splits["train"]) + tokenizer.decode(data.splits["val"]) == "some text " * 50


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from gpt2x.config.instantiate import instantiate
from gpt2x.data.config import TextConfig
from gpt2x.tokenizer.char import CharTokenizer
folder, what = Path(sys.argv[1]), sys.argv[2]

class Slow(CharTokenizer):
    def encode(self, text):
        print("encode", flush=True)
        time.sleep(0.2)
        if what == "kill" and "val" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(text)

corpus = instantiate(TextConfig(path=str(folder / "corpus.txt"), val_fraction=0.5), cache=folder / "cache")
print("ready", flush=True)
while what == "race" and not (folder / "go").exists():
    time.sleep(0.01)
data = corpus.tokenize(Slow("alnrtv"), context_length=1, seed=1)
print([len(tokens) for tokens in data.splits.values()])
"""


def process(folder: Path, what: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(folder), what]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_process_killed_while_tokenizing_leaves_nothing_that_looks_complete(tmp_path):
    (tmp_path / "corpus.txt").write_text("trn" * 20 + "val" * 20)
    killed = process(tmp_path, "kill")
    assert killed.communicate(timeout=60)[0] == "ready\nencode\nencode\n"
    assert killed.returncode == -signal.SIGKILL
    assert not list((tmp_path / "cache").rglob("meta.json"))
    left = set(token_folders(tmp_path))
    made = instantiate(TextConfig(path=str(tmp_path / "corpus.txt"), val_fraction=0.5), cache=tmp_path / "cache")
    tokenizer = CharTokenizer("alnrtv")
    data = tokenized(made, tokenizer)
    assert [tokenizer.decode(data.splits[split]) for split in ("train", "val")] == ["trn" * 20, "val" * 20]
    assert left.isdisjoint(token_folders(tmp_path))  # and its remains, which may be gigabytes, are cleared away
    assert len(token_folders(tmp_path)) == 1


def test_two_processes_at_once_tokenize_once(tmp_path):
    (tmp_path / "corpus.txt").write_text("trn" * 20 + "val" * 20)
    runs = [process(tmp_path, "race") for _ in range(2)]
    assert [run.stdout.readline() for run in runs] == ["ready\n", "ready\n"]
    (tmp_path / "go").touch()
    outputs = sorted(run.communicate(timeout=60)[0] for run in runs)
    assert outputs == ["[60, 60, 0]\n", "encode\nencode\n[60, 60, 0]\n"]
    assert len(token_folders(tmp_path)) == 1


def test_a_folder_that_lost_its_meta_is_made_again(tmp_path):
    tokenizer = Counting(LETTERS)
    tokenized(corpus(tmp_path, "some text " * 50), tokenizer)
    (folder,) = token_folders(tmp_path)
    (folder / "meta.json").unlink()
    data = tokenized(corpus(tmp_path, "some text " * 50), tokenizer)
    assert tokenizer.pieces == 4
    assert len(data.splits["train"]) == 450


def test_a_damaged_token_file_is_refused_with_the_remedy(tmp_path):
    tokenizer = Counting(LETTERS)
    tokenized(corpus(tmp_path, "some text " * 50), tokenizer)
    (folder,) = token_folders(tmp_path)
    with open(folder / "train.bin", "r+b") as file:
        file.truncate(10)
    with pytest.raises(UserError, match=r"train\.bin is damaged .* delete the folder") as error:
        tokenized(corpus(tmp_path, "some text " * 50), tokenizer)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_ids_take_two_bytes_where_all_fit_and_four_where_not(tmp_path, extra):
    """65,536 ids, end-of-text included, are what two bytes can hold."""
    characters = "".join(map(chr, range(0x10000, 0x10000 + 65_535 + extra)))
    text = characters[:5] + characters[-5:]
    tokenizer = CharTokenizer(characters)
    data = tokenized(corpus(tmp_path, text * 2, separator=characters[100], val_fraction=0.0), tokenizer)
    tokens = data.splits["train"]
    assert tokens.dtype == (np.uint16 if extra <= 0 else np.uint32)
    assert tokenizer.decode(tokens[:-1]) == text * 2
    assert tokens[-1] == tokenizer.end_of_text == 65_535 + extra
    batch = data.train_batch(0)
    assert set(batch.inputs.flatten().tolist()) <= set(tokenizer.encode(text).tolist())


def test_the_cache_says_what_it_holds_and_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        made = corpus(tmp_path, "some text " * 50)
        tokenized(made, CharTokenizer(LETTERS))
    finally:
        os.umask(before)
    (folder,) = token_folders(tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta == {
        "dtype": "uint16",
        "tokens": {"train": 450, "val": 50, "test": 0},
        "corpus": made.fingerprint,
        "tokenizer": CharTokenizer(LETTERS).fingerprint,
    }
    assert folder.name.startswith("text-char-")
    assert folder.stat().st_mode & 0o777 == 0o750  # others of one's group may share a cache
    assert {(p.name, p.stat().st_mode & 0o777) for p in folder.iterdir()} == {
        (name, 0o640) for name in ("meta.json", "train.bin", "val.bin", "test.bin")
    }


# -- large files --------------------------------------------------------------------------------------------


def test_a_large_corpus_takes_no_more_memory_than_a_small_one(tmp_path):
    """64 MB of text and 128 MB of tokens, with some pieces of a megabyte in memory at a time.

    tracemalloc sees what Python and numpy allocate, and not the mapped files, whose pages the system may drop.
    """
    line = ("The same words come again and again, " * 27)[:-1] + "\n"
    with open(tmp_path / "large.txt", "w") as file:
        for _ in range(64):
            file.write(line * 1050)
    size = (tmp_path / "large.txt").stat().st_size
    assert size > 64 << 20
    tokenizer = CharTokenizer("".join(sorted(set(line))))
    assert tokenizer.encode("a").dtype == np.int32  # its table is made before the measuring
    tracemalloc.start()
    data = tokenized(corpus(tmp_path, path=str(tmp_path / "large.txt")), tokenizer, context_length=256)
    batch = data.train_batch(12_345)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20
    assert isinstance(data.splits["train"], np.memmap)
    assert isinstance(data.splits["val"], np.memmap)
    assert not data.splits["train"].flags.writeable
    assert sum(map(len, data.splits.values())) == size
    assert tokenizer.decode(batch.inputs[0].numpy()) in line * 2


def test_a_large_file_is_hashed_again_only_when_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        file.truncate((1 << 26) + 1)
    first = corpus(tmp_path, path=str(path)).fingerprint
    with open(path, "r+b") as file:
        file.write(b"edited")
    os.utime(path, ns=(10**18, 10**18))
    edited = corpus(tmp_path, path=str(path)).fingerprint
    assert edited != first
    with monkeypatch.context() as patch:
        patch.delattr(gpt2x.data.text, "sha256_file")
        assert corpus(tmp_path, path=str(path)).fingerprint == edited
    (memo,) = (tmp_path / "cache" / "hashes").iterdir()
    memo.write_text("damaged")
    assert corpus(tmp_path, path=str(path)).fingerprint == edited
