"""Tables of labelled texts: every row in one split, copies together, and no faulty file taken."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections import Counter, defaultdict
from pathlib import Path

import pandas
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2x.config.compose import compose
from gpt2x.config.instantiate import instantiate
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import TrainConfig
from gpt2x.data.config import TableConfig
from gpt2x.data.table import Row, TableCorpus, balanced, cut_as_the_book, cut_stratified
from gpt2x.errors import UserError
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer

SPLITS = ("train", "val", "test")


def table(folder: Path, content: str | bytes, file: str = "t.csv", /, **fields) -> TableCorpus:
    """The corpus of one file with this content."""
    path = folder / file
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    config = TableConfig(path=str(path), **fields)
    config.check()
    return instantiate(config, cache=folder / "cache", mirror=None)


def configured(cache: Path, mirror: Path | None, *overrides: str) -> TableCorpus:
    config = compose("train", TrainConfig, ["task=classifier", *overrides])
    return instantiate(config.data, cache=cache, mirror=mirror)


def many(n: int = 20) -> list[tuple[str, str]]:
    """Rows of two labels by turns."""
    return [(f"message {i}", "ab"[i % 2]) for i in range(n)]


def csv_text(rows: list[tuple[str, str]], header: str = "text,label\n", delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return header + file.getvalue()


def contents(corpus: TableCorpus) -> list[tuple[str, str]]:
    """(text, label) of every row, in the order of the file."""
    rows = [row for split in SPLITS for row in corpus.splits[split]]
    return [(row.text, corpus.labels[row.label]) for row in sorted(rows, key=lambda row: row.line)]


# -- splits -------------------------------------------------------------------------------------------------

ROWS = st.lists(st.tuples(st.sampled_from([f"{w}{e}" for w in "abcdefgh" for e in ("", " ", "\n")]), st.integers(0, 2)))
DISTINCT = st.lists(st.integers(0, 3), min_size=1, max_size=80)
FRACTIONS = st.tuples(st.integers(0, 50), st.integers(0, 49)).map(lambda p: (p[0] / 100, p[1] / 100))


def numbered(rows: list[tuple[str, int]]) -> list[Row]:
    return [Row(text, label, line) for line, (text, label) in enumerate(rows, start=2)]


@given(ROWS, FRACTIONS, st.integers(0, 2**32 - 1))
@example([("a", 0), ("b", 1), ("a", 1)], (0.5, 0.0), 1)
def test_the_stratified_split_loses_and_doubles_nothing_and_keeps_copies_together(rows, fractions, seed):
    rows = numbered(rows)
    splits = cut_stratified(rows, *fractions, seed)
    assert list(splits) == list(SPLITS)
    assert sorted((row for part in splits.values() for row in part), key=lambda row: row.line) == rows
    homes = defaultdict(set)
    for split, part in splits.items():
        assert part == sorted(part, key=lambda row: row.line)  # in the order of the file
        for row in part:
            homes[row.text.strip()].add(split)
    assert all(len(home) == 1 for home in homes.values())
    for split, fraction in zip(("val", "test"), fractions):
        assert len(splits[split]) <= len(rows) * fraction + 1e-6
    assert splits == cut_stratified(rows, *fractions, seed)


@given(DISTINCT, FRACTIONS, st.integers(0, 100))
def test_of_different_texts_every_class_has_its_exact_shares(labels, fractions, seed):
    rows = numbered([(f"text {i}", label) for i, label in enumerate(labels)])
    splits = cut_stratified(rows, *fractions, seed)
    for label, n in Counter(labels).items():
        counts = [sum(row.label == label for row in splits[split]) for split in ("val", "test")]
        assert counts == [n * round(100 * fraction) // 100 for fraction in fractions]
        assert sum(row.label == label for row in splits["train"]) >= 1  # whatever the shares, something to learn from


@given(ROWS, FRACTIONS)
def test_a_class_comes_as_near_to_its_share_as_its_copies_allow(rows, fractions):
    rows = [(f"{label} {text}", label) for text, label in rows]  # no text has two labels
    splits = cut_stratified(numbered(rows), *fractions, 1)
    for label, n in Counter(label for _, label in rows).items():
        largest = max(Counter(text.strip() for text, of in rows if of == label).values())
        for split, fraction in zip(("val", "test"), fractions):
            lacking = n * fraction - sum(row.label == label for row in splits[split])
            assert -1e-6 <= lacking < largest + 1 or not any(row.label == label for row in splits["train"])


def test_another_seed_is_another_split():
    rows = numbered([(f"text {i}", i % 2) for i in range(100)])
    assert len({str(cut_stratified(rows, 0.1, 0.2, seed)) for seed in range(10)}) == 10
    assert len({str(cut_as_the_book(rows, 0.1, 0.2, seed)) for seed in range(10)}) == 10


@given(DISTINCT, FRACTIONS)
def test_the_books_split_loses_nothing_and_cuts_by_position(labels, fractions):
    rows = numbered([(f"text {i}", label) for i, label in enumerate(labels)])
    splits = cut_as_the_book(rows, *fractions, 123)
    assert sorted((row for part in splits.values() for row in part), key=lambda row: row.line) == rows
    n, hundredths = len(rows), [round(100 * fraction) for fraction in fractions]
    assert len(splits["train"]) == n * (100 - sum(hundredths)) // 100
    if hundredths[1]:
        assert len(splits["val"]) == n * hundredths[0] // 100
    else:
        assert splits["test"] == []


@given(DISTINCT, st.integers(0, 100))
def test_balanced_classes_are_all_as_large_as_the_smallest(labels, seed):
    rows = numbered([(f"text {i}", label) for i, label in enumerate(labels)])
    kept = balanced(rows, seed)
    counts = Counter(labels)
    assert Counter(row.label for row in kept) == dict.fromkeys(counts, min(counts.values()))
    assert len(set(kept)) == len(kept)
    assert set(kept) <= set(rows)
    assert kept == balanced(rows, seed)


def test_a_text_with_two_labels_is_kept_in_one_split_and_warned_of(tmp_path, caplog):
    rows = [*many(), ("twofold", "a"), (" twofold ", "b"), ("twofold", "a")]
    made = table(tmp_path, csv_text(rows))
    assert contents(made) == rows
    homes = {split for split in SPLITS for row in made.splits[split] if "twofold" in row.text}
    assert len(homes) == 1
    assert "1 texts have several labels (line 22: a; line 23: b; line 24: a)" in caplog.text


# -- the corpus ---------------------------------------------------------------------------------------------


def test_what_the_corpus_says_of_itself(tmp_path):
    made = table(tmp_path, csv_text(many(40)), batch_size=3, eval_batch_size=None, shuffle=False)
    assert str(made) == "table: 28 train + 4 val + 8 test rows, 2 classes (a 20, b 20)"
    assert made.labels == ["a", "b"]
    assert made.batching == {"batch_size": 3, "eval_batch_size": 3, "drop_last": False, "shuffle": False}
    assert list(made.texts("train", "val")) == [row.text for split in ("train", "val") for row in made.splits[split]]
    assert len(list(made.texts())) == 40
    assert table(tmp_path, csv_text(many(40)), eval_batch_size=9).batching["eval_batch_size"] == 9
    rows = [(f"{i} {copy}", f"class{i:02}") for i in range(11) for copy in range(10)]
    shown = ", ".join(f"class0{i} 10" for i in range(8))
    assert str(table(tmp_path, csv_text(rows))).endswith(f"11 classes ({shown}, 3 more)")


def test_the_fingerprint_follows_what_the_splits_hold_and_nothing_else(tmp_path):
    first = table(tmp_path, csv_text(many()))
    (tmp_path / "other").mkdir()
    tabs = csv_text(many(), delimiter="\t", header="text\tlabel\n")
    same = table(tmp_path / "other", tabs, "other.tsv", name="x", batch_size=1)
    assert same.fingerprint == first.fingerprint
    changed = [
        table(tmp_path, csv_text([*many(), ("one more", "a")])),
        table(tmp_path, csv_text([("message 0!", "a"), *many()[1:]])),
        table(tmp_path, csv_text([(text, {"a": "b", "b": "a"}[label]) for text, label in many()])),
        table(tmp_path, csv_text(many()), split_seed=1),
        table(tmp_path, csv_text(many()), split="book"),
        table(tmp_path, csv_text(many()), test_fraction=0.1),
        table(tmp_path, csv_text(many()), labels=["b", "a"]),
    ]
    assert len({first.fingerprint, *(made.fingerprint for made in changed)}) == len(changed) + 1


def test_labels_are_sorted_or_as_given(tmp_path):
    rows = [(f"text {i}", ("10", "9", "2")[i % 3]) for i in range(60)]
    assert table(tmp_path, csv_text(rows)).labels == ["2", "9", "10"]  # whole numbers by their value
    made = table(tmp_path, csv_text(rows), labels=["9", "10", "2"])
    assert made.labels == ["9", "10", "2"]
    assert contents(made) == rows
    rows = [(f"text {i}", (" spam", "ham ", "7")[i % 3]) for i in range(60)]
    assert table(tmp_path, csv_text(rows)).labels == ["7", "ham", "spam"]


def test_a_fraction_of_nothing_leaves_its_split_empty(tmp_path):
    made = table(tmp_path, csv_text(many()), val_fraction=0.0, test_fraction=0.0)
    assert str(made) == "table: 20 train rows, 2 classes (a 10, b 10)"


# -- formats ------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1).filter(str.strip)


@given(st.lists(TEXT, min_size=2, max_size=10))
@example(['"', 'a "quoted" word', "two\nlines", "with,comma", "with\ttab", "\r\n.", "NA", "null", "  kept  ", "x\u2028y"])
@example(["'", '""', '",', "\r.", "é漢🦙", "\x85.", "1", "true"])
def test_every_text_comes_back_from_every_format(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("tables")
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(texts)]
    fields = dict(val_fraction=0.0, test_fraction=0.0)
    assert contents(table(folder, quoted(rows, ","), "t.csv", **fields)) == rows
    assert contents(table(folder, quoted(rows, "\t"), "t.tsv", **fields)) == rows
    lines = "".join(json.dumps({"label": label, "text": text, "id": 1}) + "\n" for text, label in rows)
    assert contents(table(folder, lines, "t.jsonl", **fields)) == rows
    assert contents(table(folder, lines.replace("\n", "\r\n\r\n"), "t.dat", format="jsonl", **fields)) == rows


def quoted(rows: list[tuple[str, str]], delimiter: str) -> str:
    """Every field between quotes, and the mark of spreadsheets in front."""
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    return "\ufeff" + file.getvalue()


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_parquet_comes_back_too(tmp_path_factory, pairs):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("tables")
    rows = [(text, i % 2) for i, text in enumerate(t for pair in pairs for t in pair)]
    parquet.write_table(pyarrow.table({"y": [y for _, y in rows], "x": [x for x, _ in rows]}), folder / "t.parquet")
    made = table(
        folder, (folder / "t.parquet").read_bytes(), "t.parquet", text_column="x", label_column="y", val_fraction=0.0,
        test_fraction=0.0,
    )  # fmt: skip
    assert contents(made) == [(text, str(label)) for text, label in rows]
    assert sorted(row.line for row in made.splits["train"]) == list(range(1, len(rows) + 1))


def test_parquet_of_pandas_with_gaps_is_refused_by_row(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"text": ["one", None, "three", "four"], "label": [0, 1, None, 1]})  # labels become 0.0, 1.0
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError) as error:
        table(tmp_path, (tmp_path / "t.parquet").read_bytes(), "t.parquet")
    assert "1 have no text: row 2" in str(error.value)
    assert "1 have no label, which is text or a whole number: row 3" in str(error.value)
    frame.iloc[[0, 3]].to_parquet(tmp_path / "t.parquet")
    made = table(tmp_path, (tmp_path / "t.parquet").read_bytes(), "t.parquet", val_fraction=0.0, test_fraction=0.0)
    assert made.labels == ["0", "1"]
    with pytest.raises(UserError, match=r"t\.parquet: cannot be read as Parquet: .*\n  Is data\.format right\?"):
        table(tmp_path, "text,label\n", "t.parquet")


def test_parquet_without_pyarrow_is_told_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'gpt2x\[parquet\]'"):
        TableConfig(path=str(tmp_path / "t.parquet")).check_available()
    (tmp_path / "t.csv").touch()
    TableConfig(path=str(tmp_path / "t.csv")).check_available()


def test_columns_may_be_named_and_others_are_passed_over(tmp_path):
    rows = [(str(i), f"text {i}", "ab"[i % 2]) for i in range(20)]
    made = table(tmp_path, csv_text(rows, "id , what, topic \n"), text_column="what", label_column="topic")
    assert contents(made) == [row[1:] for row in rows]
    headless = table(tmp_path, csv_text(rows, ""), columns=["id", "text", "label"])
    assert contents(headless) == [row[1:] for row in rows]
    assert min(row.line for split in SPLITS for row in headless.splits[split]) == 1


def test_labels_of_json_may_be_numbers_and_truths(tmp_path):
    lines = [{"text": f"text {i}", "label": i % 3 == 0} for i in range(30)]
    assert table(tmp_path, "\n".join(map(json.dumps, lines)), "t.jsonl").labels == ["false", "true"]
    lines = [{"text": f"text {i}", "label": (3, 12)[i % 2]} for i in range(30)]
    assert table(tmp_path, "\n".join(map(json.dumps, lines)), "t.jsonl").labels == ["3", "12"]


def test_without_quoting_a_quote_is_a_character(tmp_path, caplog):
    text = 'text\tlabel\n"never closed\ta\n' + "".join(f"m{i}\t{'ab'[i % 2]}\n" for i in range(20))
    made = table(tmp_path, text, "t.tsv", quoting="none")
    assert contents(made)[0] == ('"never closed', "a")
    assert not caplog.records
    with pytest.raises(UserError, match="line 2: 1 fields instead of 2"):
        table(tmp_path, text, "t.tsv")
    assert "quotes that end in line 22 are not what CSV wants (unexpected end of data)" in caplog.text
    assert "data.quoting=none" in caplog.text
    with pytest.raises(UserError, match=r"line 2 cannot be read: field larger than field limit(.|\n)*data\.quoting=none"):
        table(tmp_path, text + "x" * 200_000, "t.tsv")


# -- what is refused ----------------------------------------------------------------------------------------


def refused(folder: Path, content: str | bytes, file: str = "t.csv", /, kind: type = UserError, **fields) -> str:
    with pytest.raises(UserError) as error:
        table(folder, content, file, **fields)
    assert type(error.value) is kind
    assert str(folder / file) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("setting", ["text_column", "label_column"])
def test_a_missing_column_is_told_with_those_there_are(tmp_path, setting):
    message = refused(tmp_path, csv_text(many()), kind=ConfigError, **{setting: "topic"})
    assert message.startswith(f"data.{setting}=topic: {tmp_path / 't.csv'} has no such column; it has [text,label]\n")
    assert "data.columns=" in message
    lines = "\n".join(json.dumps({"text": "x", "tag": i}) for i in range(5))
    assert "it has [text,tag]" in refused(tmp_path, lines, "t.jsonl", kind=ConfigError)


def test_a_column_that_is_named_twice_is_refused(tmp_path):
    assert "the header names a column twice: text" in refused(tmp_path, csv_text(many(), "text,text\n"))


def test_unknown_labels_are_named_with_their_lines(tmp_path):
    rows = [*many(), ("x", "c"), ("y", "A"), *many()]
    message = refused(tmp_path, csv_text(rows), labels=["a", "b"])
    assert "2 have a label that data.labels=[a,b] does not name: line 22: c, line 23: A" in message


def test_every_kind_of_fault_is_named_the_first_few_and_how_many(tmp_path):
    content = csv_text(many()) + " ,a\n" * 7 + "fine,\nfine,  \n" + '"two\nlines, and a line",b,c\nalone\n"",\n'
    message = refused(tmp_path, content).splitlines()
    assert message == [
        f"{tmp_path / 't.csv'}: 13 faults; mend the rows, or take them out of the file",
        "  8 have an empty text: line 22, line 23, line 24, line 25, line 26, and 3 more",
        "  3 have no label, which is text or a whole number: line 29, line 30, line 34",
        "  2 cannot be read: line 31: 3 fields instead of 2 (a text that holds the separator needs quotes), "
        "line 33: 1 fields instead of 2 (a text that holds the separator needs quotes)",
    ]


def test_lines_that_are_no_json_objects_are_named(tmp_path):
    good = [json.dumps({"text": text, "label": label}) for text, label in many(6)]
    bad = ["{", "[1]", '"text"', "[" * 100_000, '{"text": 5, "label": "a"}', '{"text": "x", "label": 1.5}']
    bad += ['{"label": "a"}', '{"text": "\\ud800", "label": "a"}', '{"text": null, "label": null}']
    message = refused(tmp_path, "\n".join([*good, "", *bad]), "t.jsonl")
    assert "4 cannot be read: line 8: no JSON (" in message
    assert "line 9: no JSON object, such as {...}, line 10: no JSON object" in message
    assert "1 have something else than a text: line 12: int" in message
    assert "2 have no label, which is text or a whole number: line 13, line 16" in message
    assert "2 have no text: line 14, line 16" in message
    assert "1 have a text with half a character (a lone surrogate): line 15" in message


def test_bad_encoding_is_told_with_its_line_and_binary_files_as_such(tmp_path):
    message = refused(tmp_path, csv_text(many()).encode() + "Grüße,a\n".encode("latin-1"))
    assert "not valid UTF-8 in line 22 (byte 263 is 0xfc)" in message
    assert "iconv -f LATIN1 -t UTF-8 t.csv" in message
    for name in ("t.csv", "t.jsonl"):
        assert "is NUL, so this is a binary file, or UTF-16" in refused(tmp_path, "text,label".encode("utf-16"), name)


@pytest.mark.parametrize("content", ["", "\n\n", "text,label\n", "text,label\n\n \n"[:-2], "\ufefftext,label\n"])
def test_an_empty_table_is_refused(tmp_path, content):
    assert "the table is empty" in refused(tmp_path, content)
    if "text" not in content:
        assert "the table is empty" in refused(tmp_path, content, "t.jsonl")


def test_a_single_class_is_refused(tmp_path):
    rows = [(text, "a") for text, _ in many()]
    assert "every row has the label a; a classifier needs rows of two classes" in refused(tmp_path, csv_text(rows))
    assert "every row has the label a" in refused(tmp_path, csv_text(rows), labels=["a", "b"])


def test_too_few_rows_are_refused_and_a_class_missing_where_it_is_measured_is_warned_of(tmp_path, caplog):
    message = refused(tmp_path, csv_text(many(8)))
    assert "8 rows in 2 classes are too few: with data.val_fraction=0.1 the val split is empty" in message
    assert "0 to do without the split" in message
    assert "no row of the training split has the label c\n" in refused(tmp_path, csv_text(many()), labels=["a", "b", "c"])
    rows = [("same", "a"), ("same", "b"), *many(40)[::2]]  # the only row of b goes where that of a goes
    seeds = range(50)
    held = [cut_stratified(numbered([(text, "ab".index(label)) for text, label in rows]), 0.1, 0.2, seed) for seed in seeds]
    seed = next(seed for seed in seeds if held[seed]["test"][0].text == "same")
    assert "no row of the training split has the label b\n" in refused(tmp_path, csv_text(rows), split_seed=seed)
    caplog.clear()
    table(tmp_path, csv_text([*many(40), ("x", "c"), ("y", "c")]))
    assert "the val split has no row with the label c" in caplog.text
    assert "the test split has no row with the label c" in caplog.text


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    config = TableConfig(path=str(tmp_path / "gone.csv"))
    with pytest.raises(ConfigError, match="no such file"):
        config.check_available()
    with pytest.raises(UserError, match=r"gone\.csv cannot be read: No such file"):
        instantiate(config, cache=tmp_path, mirror=None)
    with pytest.raises(ConfigError, match="no such file"):
        TableConfig(path=str(tmp_path), format="csv").check_available()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": None}, "path=null: no file given\n  say where yours is, such as data=table data.path=messages.csv"),
        ({"builtin": "x.csv"}, r"several sources \(builtin, path\)\n  use data=table for your own files"),
        ({"path": "notes.txt"}, r"format=null: the name notes.txt does not tell it\n  one of csv, tsv, parquet, jsonl"),
        ({"path": "x.jsonl", "quoting": "none"}, "quoting=none: is for csv and tsv; this is jsonl"),
        ({"format": "parquet", "columns": ["text", "label"]}, r"columns=\[text,label\]: is for csv and tsv; this is parquet"),
        ({"text_column": "label"}, "label_column=label: is data.text_column too"),
        ({"columns": ["text", "topic"]}, r"label_column=label: is none of data.columns=\[text,topic\]"),
        ({"columns": ["text", "label", "text"]}, "two columns have the same name"),
        ({"labels": ["a"]}, "at least two classes"),
        ({"labels": ["a", "a"]}, "each must be another text"),
        ({"labels": ["a", " b"]}, "no white space around it"),
        ({"labels": ["a", ""]}, "each must be another text"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "nothing is left to train on"),
        ({"member": "x.csv"}, "member=x.csv: belongs to a file that is fetched"),
        ({"path": None, "url": "http://h/x.csv", "archive_sha256": "0"}, "data.member, the file in it, is not given"),
        ({"path": None, "url": "http://h/x.zip", "member": "m.csv", "file": "x.zip"}, "file=x.zip: is the name of the zip"),
        ({"path": None, "url": "http://h/x.zip"}, "the name x.zip does not tell it"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TableConfig(**{"path": "x.csv"} | fields).check()


# -- the tables of configs/data -----------------------------------------------------------------------------


def test_the_sample_is_sound(tmp_path, caplog):
    made = configured(tmp_path, None, "data=spam_sample")
    assert not caplog.records
    assert str(made) == "spam_sample: 211 train + 28 val + 58 test rows, 2 classes (ham 179, spam 118)"
    texts = list(made.texts())
    assert len({text.lower() for text in texts}) == len(texts)
    assert max(map(len, texts)) <= 200
    for text in texts:  # no address that is anybody's
        assert not any(part in text for part in ("http", "www."))
        assert all(address.startswith("example.") for address in re.findall(r"\w+\.(?:com|net|org)\b", text))


@pytest.fixture(scope="module")
def sms(mirror) -> pandas.DataFrame:
    """The messages as pandas reads them when told to leave quotes alone."""
    return pandas.read_csv(
        mirror / "SMSSpamCollection", sep="\t", header=None, names=["label", "text"], quoting=csv.QUOTE_NONE,
        keep_default_na=False,
    )  # fmt: skip


def test_all_5574_messages_are_there_and_no_copy_straddles_the_split(tmp_path, mirror, sms, caplog):
    made = configured(tmp_path, mirror, "data=sms_spam")
    assert contents(made) == list(zip(sms.text, sms.label))
    assert str(made).endswith("2 classes (ham 4,827, spam 747)")
    assert len(sms) - len(sms.drop_duplicates()) == 403
    seen = [{row.text.strip() for row in made.splits[split]} for split in SPLITS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    for split, fraction in (("val", 0.1), ("test", 0.2)):
        counts = Counter(row.label for row in made.splits[split])
        assert counts == {0: int(4827 * fraction), 1: int(747 * fraction)}
    assert not caplog.records
    assert not (tmp_path / "downloads").exists()  # the mirror's file is not copied


def test_balanced_it_has_747_of_each(tmp_path, mirror):
    made = configured(tmp_path, mirror, "data=sms_spam", "data.balance=true")
    assert Counter(row.label for split in SPLITS for row in made.splits[split]) == {0: 747, 1: 747}
    counts = [Counter(row.label for row in made.splits[split]) for split in ("val", "test")]
    assert counts == [{0: 74, 1: 74}, {0: 149, 1: 149}]


def test_the_books_split_is_the_books(tmp_path, mirror, caplog):
    """Against the steps that the book describes, done with pandas; with GPT-2's tokens its longest training text has 120."""
    made = configured(tmp_path, mirror, "data=sms_spam", "data.balance=true", "data.split=book", "data.quoting=standard")
    assert "quotes that end in line 283 are not what CSV wants" in caplog.text  # so the book reads two rows less
    frame = pandas.read_csv(mirror / "SMSSpamCollection", sep="\t", header=None, names=["label", "text"])
    assert len(frame) == 5572
    spam = frame[frame.label == "spam"]
    both = pandas.concat([frame[frame.label == "ham"].sample(len(spam), random_state=123), spam])
    both = both.sample(frac=1, random_state=123).reset_index(drop=True)
    expected = [both[:1045], both[1045:1194], both[1194:]]
    for split, part in zip(SPLITS, expected):
        assert [(row.text, made.labels[row.label]) for row in made.splits[split]] == list(zip(part.text, part.label))
    assert [len(made.splits[split]) for split in SPLITS] == [1045, 149, 300]
    first = made.splits["test"][0]
    assert (first.line, first.label, first.text[:14]) == (2080, 1, "85233 FREE>Rin")
    tokenizer = GPT2Tokenizer()
    assert max(len(tokenizer.encode(text)) for text in made.texts("train")) == 120


def test_every_way_of_reading_agrees_with_pandas(tmp_path, mirror, sms):
    """The reader here is Python's; its rows are those of pandas, merged ones too."""
    logging.getLogger("gpt2x.data.table").setLevel(logging.ERROR)
    try:
        made = configured(tmp_path, mirror, "data=sms_spam", "data.quoting=standard")
    finally:
        logging.getLogger("gpt2x.data.table").setLevel(logging.NOTSET)
    frame = pandas.read_csv(mirror / "SMSSpamCollection", sep="\t", header=None, names=["label", "text"], keep_default_na=False)
    assert contents(made) == list(zip(frame.text, frame.label))
    lines = [row.line for split in SPLITS for row in made.splits[split]]
    assert set(range(1, 5575)) - set(lines) == {5083, 5084}  # they follow a quote that is opened in line 5082
