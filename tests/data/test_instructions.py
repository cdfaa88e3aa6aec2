"""Instruction records: every object exactly once, in the split where it belongs, and refusals that say where."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.config.compose import compose
from gpt2x.config.instantiate import instantiate
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import TrainConfig
from gpt2x.data.config import SPLITS, InstructionsConfig, held_out
from gpt2x.data.instructions import InstructionCorpus, Record, _cut
from gpt2x.errors import UserError


def corpus(folder: Path, content: object, name: str = "mine.json", **fields) -> InstructionCorpus:
    """The corpus of a file that holds `content`: its text, its bytes, or what is written as JSON."""
    path = folder / name
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)
    return instantiate(InstructionsConfig(path=str(path), **fields), cache=folder / "cache", mirror=None)


def configured(folder: Path, mirror: Path | None, *overrides: str) -> InstructionCorpus:
    config = compose("train", TrainConfig, ["task=instruct", *overrides])
    return instantiate(config.data, cache=folder / "cache", mirror=mirror)


def objects(n: int, start: int = 0) -> list[dict]:
    return [
        {"instruction": f"do {i}", "input": f"to {i}" if i % 2 else "", "output": f"done {i}"} for i in range(start, start + n)
    ]


def sizes(corpus: InstructionCorpus) -> dict[str, int]:
    return {split: len(records) for split, records in corpus.splits.items()}


# -- real sets ------------------------------------------------------------------------------------------------


def test_the_books_set_is_split_as_in_the_book(mirror, tmp_path):
    corpus = configured(tmp_path, mirror, "data=instructions")
    assert sizes(corpus) == {"train": 935, "val": 55, "test": 110}
    entries = json.loads((mirror / "instruction-data.json").read_text())
    in_order = [*corpus.splits["train"], *corpus.splits["test"], *corpus.splits["val"]]  # where they stand in the file
    assert [(r.instruction, r.input, *r.outputs) for r in in_order] == [tuple(entry.values()) for entry in entries]
    assert [r.line for r in in_order] == list(range(1, 1101))
    assert str(corpus) == "instructions: 935 train + 55 val + 110 test records"


def test_the_books_set_without_what_it_trains_on_too(mirror, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        kept = configured(tmp_path, mirror, "data=instructions")
    assert "4 val and 2 test ask what an earlier split asks too: kept" in caplog.text
    corpus = configured(tmp_path, mirror, "data=instructions", "data.drop_seen=true")
    assert sizes(corpus) == {"train": 935, "val": 51, "test": 108}
    asked = {split: {(r.instruction, r.input) for r in corpus.splits[split]} for split in SPLITS}
    assert not asked["train"] & asked["val"]
    assert not (asked["train"] | asked["val"]) & asked["test"]
    assert corpus.fingerprint != kept.fingerprint


def test_scitldr_has_the_published_splits_and_several_references(mirror, tmp_path):
    corpus = configured(tmp_path, mirror, "data=scitldr")
    assert sizes(corpus) == {"train": 1992, "val": 619, "test": 618}
    for split, file in (("train", "train"), ("val", "dev"), ("test", "test")):
        rows = [json.loads(line) for line in (mirror / f"scitldr-a-{file}.jsonl").read_text().splitlines()]
        assert [r.outputs for r in corpus.splits[split]] == [tuple(row["target"]) for row in rows]
        assert [r.input for r in corpus.splits[split]] == [" ".join(row["source"]) for row in rows]
    assert {r.instruction for split in SPLITS for r in corpus.splits[split]} == {"Summarize the paper in one sentence."}
    assert Counter(len(r.outputs) for r in corpus.splits["test"]) == {2: 83, 3: 339, 4: 196}


def test_the_sample_is_small_families_of_plain_instructions(tmp_path):
    corpus = configured(tmp_path, None, "data=instructions_sample")
    records = [r for split in SPLITS for r in corpus.splits[split]]
    assert sizes(corpus) == {"train": 144, "val": 9, "test": 17}
    assert len({(r.instruction, r.input) for r in records}) == len(records) == 170
    assert 0.4 < sum(bool(r.input) for r in records) / len(records) < 0.6
    assert all(r.instruction.strip() == r.instruction and r.outputs[0].strip() == r.outputs[0] for r in records)
    assert all(text.isascii() and len(text) < 300 for text in corpus.texts())


# -- splitting ------------------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 300),
    val=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
    order=st.permutations(SPLITS),
)
def test_a_cut_loses_nothing_keeps_the_order_and_has_the_shares(n, val, test, order):
    records = [Record(f"do {i}", "", ("done",), i) for i in range(n)]
    splits = _cut(records, order, val, test)
    assert list(splits) == list(SPLITS)
    assert [r for split in order for r in splits[split]] == records
    for split, share in (("val", val), ("test", test)):
        assert abs(len(splits[split]) - n * share) < 1.001


def test_order_says_which_split_comes_where(tmp_path):
    fields = dict(val_fraction=0.2, test_fraction=0.3)
    lines = {
        tuple(order): {split: [r.line for r in records] for split, records in found.splits.items()}
        for order in (["train", "test", "val"], ["val", "train", "test"])
        for found in [corpus(tmp_path, objects(10), order=order, **fields)]
    }
    assert lines["train", "test", "val"] == {"train": [1, 2, 3, 4, 5], "test": [6, 7, 8], "val": [9, 10]}
    assert lines["val", "train", "test"] == {"val": [1, 2], "train": [3, 4, 5, 6, 7], "test": [8, 9, 10]}


def test_files_of_their_own_leave_the_first_one_whole(tmp_path):
    for name, start in (("val", 100), ("test", 200)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, objects(3, start))))
    val, test = str(tmp_path / "val.jsonl"), str(tmp_path / "test.jsonl")
    assert sizes(corpus(tmp_path, objects(10), val_path=val, test_path=test)) == {"train": 10, "val": 3, "test": 3}
    assert sizes(corpus(tmp_path, objects(10), val_path=val)) == {"train": 10, "val": 3, "test": 0}
    both = corpus(tmp_path, objects(10), val_path=val, test_fraction=0.2)
    assert sizes(both) == {"train": 8, "val": 3, "test": 2}
    assert [r.instruction for r in both.splits["val"]] == ["do 100", "do 101", "do 102"]


def test_what_is_trained_on_is_left_out_of_what_is_held_out(tmp_path, caplog):
    data = objects(10)
    data[6] = {**data[0], "output": "another"}  # asked in training
    data[8] = data[9] = {"instruction": "do", "input": "twice", "output": "x"}  # twice in validation, which is not the test
    data[7] = data[9]  # and once in the test
    fields = dict(val_fraction=0.2, test_fraction=0.2)
    with caplog.at_level(logging.INFO):
        found = corpus(tmp_path, data, **fields)
    assert {split: [r.line for r in records] for split, records in found.splits.items()} == {
        "train": [1, 2, 3, 4, 5, 6],
        "val": [9, 10],
        "test": [],
    }
    assert "2 test ask what an earlier split asks too: left out" in caplog.text
    assert sizes(corpus(tmp_path, data, drop_seen=False, **fields)) == {"train": 6, "val": 2, "test": 2}


def test_one_record_alone_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match=r"too few records \(1\)[^$]*data.val_fraction=0 data.test_fraction=0"):
        corpus(tmp_path, objects(1))
    assert sizes(corpus(tmp_path, objects(1), val_fraction=0, test_fraction=0)) == {"train": 1, "val": 0, "test": 0}


# -- reading --------------------------------------------------------------------------------------------------


def everything(corpus: InstructionCorpus) -> list[Record]:
    return sorted((r for records in corpus.splits.values() for r in records), key=lambda r: r.line)


def test_a_list_and_lines_hold_the_same_records(tmp_path):
    data = objects(20)
    data[3]["output"] = "naïve – 雪\u2028not a line end"
    listed = corpus(tmp_path, data)
    assert listed.splits["train"][3].outputs == ("naïve – 雪\u2028not a line end",)
    lines = [json.dumps(o, ensure_ascii=False) for o in data]
    for text in ("\n".join(lines), "\n".join(lines) + "\n", "\r\n".join(lines), "\ufeff" + "\n".join(lines)):
        found = corpus(tmp_path, text, "mine.jsonl")
        assert found.splits == listed.splits
        assert found.fingerprint == listed.fingerprint
    spaced = corpus(tmp_path, "\n\n".join(lines), "mine.jsonl")  # blank lines count as lines, not as records
    assert [r.line for r in everything(spaced)] == list(range(1, 40, 2))
    assert spaced.fingerprint == listed.fingerprint


def test_fields_may_have_other_names_and_hold_lists(tmp_path):
    data = [
        {"q": "Sum up.", "doc": ["One.", "Two."], "gold": ["a", "b"]},
        {"q": "Sing.", "gold": "la", "doc": None},
        {"q": "Hum.", "gold": "m"},
    ]
    named = dict(instruction_field="q", input_field="doc", output_field="gold", val_fraction=0, test_fraction=0)
    assert everything(corpus(tmp_path, data, **named)) == [
        Record("Sum up.", "One. Two.", ("a", "b"), 1),
        Record("Sing.", "", ("la",), 2),
        Record("Hum.", "", ("m",), 3),
    ]
    without = corpus(tmp_path, data, **{**named, "input_field": None})
    assert [r.input for r in everything(without)] == ["", "", ""]
    same = corpus(tmp_path, data, **{**named, "instruction": "Shorter!"})
    assert {r.instruction for r in everything(same)} == {"Shorter!"}
    assert next(same.texts("train")) == "Shorter!\nOne. Two.\na\nb"


def test_texts_are_those_of_the_splits_asked_for(tmp_path):
    found = corpus(tmp_path, objects(20))
    assert list(found.texts("val")) == ["\n".join(filter(None, o.values())) for o in objects(1, 19)]
    assert len(list(found.texts())) == len(list(found.texts(*SPLITS))) == 20


GOOD = {"instruction": "do", "input": "", "output": "done"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([GOOD, {"instruction": "do", "input": "x"}], r"record 2: there is no field 'output' \(data.output_field\)"),
        ([GOOD, {"instruction": "do", "input": "x"}], r"\n  The fields here: instruction, input"),
        ([GOOD, {"input": "", "output": "x"}], r"record 2: there is no field 'instruction' \(data.instruction_field\)"),
        ([{"instruction": "do", "output": "x"}], r"no record has the field 'input' \(data.input_field\)\n  .*input_field=null"),
        ([GOOD, {**GOOD, "output": 7}], "record 2: the field 'output' holds a number, not text"),
        ([GOOD, {**GOOD, "output": None}], "record 2: the field 'output' holds null, not text"),
        ([GOOD, {**GOOD, "output": ["a", True]}], "record 2: the field 'output' holds true or false, not text"),
        ([GOOD, {**GOOD, "input": {"a": "b"}}], "record 2: the field 'input' holds an object, not text"),
        ([GOOD, {**GOOD, "instruction": ["do"]}], "record 2: the field 'instruction' holds a list, not text"),
        ([GOOD, {**GOOD, "output": "\ud83d"}], r"record 2: the field 'output' holds half a character \(\\ud83d\)"),
        ([GOOD, {**GOOD, "output": " \n"}], "record 2: the field 'output' is empty\n  data.drop_empty=true"),
        ([GOOD, {**GOOD, "output": []}], "record 2: the field 'output' is empty"),
        ([GOOD, {**GOOD, "output": ["a", ""]}], "record 2: the field 'output' is empty"),
        ([GOOD, {**GOOD, "instruction": ""}], "record 2: the field 'instruction' is empty"),
        ([GOOD, "do"], "record 2: this is text, not an object"),
        ([], "the list holds no record"),
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        (b"\xff\xfe\x5b", r"not valid UTF-8 in line 1 \(byte 0 is 0xff\)\n  .*iconv"),
        (json.dumps(GOOD).encode() + b"\n\n\xe9", r"not valid UTF-8 in line 3 \(byte 54 is 0xe9\)"),
        (json.dumps(GOOD) + "\n\n{'a': 1}\n", r"line 3: no valid JSON at column 2 .*\n.*holds one object a line"),
        (json.dumps([GOOD, GOOD], indent=1)[:-3], r"line 11: no valid JSON"),
        (json.dumps(GOOD, indent=1), r"line 1: no valid JSON"),
        (json.dumps(GOOD) + "\n3\n", "line 2: this is a number, not an object"),
        (json.dumps(GOOD) + '\n{"instruction": "x"}', "line 2: there is no field 'output'"),
        ("[" * 100_000, "line 1: no usable JSON"),
        (json.dumps(GOOD) + "\n" + "9" * 10_000, "line 2: no usable JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_place(content, problem, tmp_path):
    with pytest.raises(UserError, match=problem) as refused:
        corpus(tmp_path, content)
    assert "mine.json" in str(refused.value)


def test_empty_ones_are_left_out_on_request_and_counted(tmp_path, caplog):
    data = [*objects(18), {**GOOD, "output": ""}, {**GOOD, "instruction": " "}]
    with caplog.at_level(logging.INFO):
        found = corpus(tmp_path, data, drop_empty=True)
    assert [r.line for r in everything(found)] == list(range(1, 19))
    assert "2 of 20 in mine.json lack an instruction or an output: left out" in caplog.text
    with pytest.raises(UserError, match=r"too few records \(0\)"):
        corpus(tmp_path, data[18:], drop_empty=True)


def test_the_fingerprint_is_that_of_the_records_in_their_splits(tmp_path):
    data = objects(20)
    original = corpus(tmp_path, data).fingerprint
    assert corpus(tmp_path, json.dumps(data, indent=3), "other.json", batch_size=3).fingerprint == original
    changed = [*data[:5], {**data[5], "output": "done otherwise"}, *data[6:]]
    for other in (corpus(tmp_path, changed), corpus(tmp_path, data, val_fraction=0.1), corpus(tmp_path, data[::-1])):
        assert other.fingerprint != original


# -- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["data=records"], r"data.path=null: no file given\n  say where yours is, such as data=records data.path=mine.jsonl"),
        (["data=instructions", "data.path=x"], r"several sources \(url, path\)\n  use data=records for your own files"),
        (["data=scitldr", "data.val_path=x"], r"data.val_path=x: data.val_url is given too\n  leave out one of them"),
        (["data=records", "data.path=x", "data.test_sha256=0"], "data.test_sha256=0: belongs to a file .* data.test_url"),
        (["data=records", "data.path=x", "data.file=y"], "data.file=y: belongs to a file that is fetched from data.url"),
        (["data=scitldr", "data.val_fraction=0.1"], "data.val_fraction=0.1: .* gives this split its own file"),
        (["data=instructions", "data.val_fraction=0.95"], "data.test_fraction=0.1: with val_fraction=0.95 nothing is left"),
        (["data=instructions", "data.order=[train,test]"], r"data.order=\[train,test\]: expected train, val, test, each once"),
        (["data=instructions", "data.instruction=' '"], "data.instruction=.*: expected words"),
        (["data=instructions", "data.stride=3"], "data.stride=3: this choice of data has no such setting; data=shakespeare or"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(overrides, problem):
    with pytest.raises(ConfigError, match=problem):
        compose("train", TrainConfig, overrides)


def test_files_that_are_not_there_are_refused_before_anything_is_read(tmp_path):
    (tmp_path / "there").write_text("x")
    for name in ("path", "val_path", "test_path"):
        for missing in (str(tmp_path / "none"), str(tmp_path)):
            config = InstructionsConfig(**{"path": str(tmp_path / "there"), name: missing})
            with pytest.raises(ConfigError, match=f"{name}=.*: no such file"):
                config.check_available()


def test_shares_are_left_to_what_there_is_or_as_given():
    assert held_out(None, None, own_files=False) == (0.05, 0.10)
    assert held_out(None, None, own_files=True) == (0, 0)
    assert held_out(0.2, None, own_files=False) == (0.2, 0.10)
    assert held_out(None, 0.0, own_files=False) == (0.05, 0)
    assert held_out(None, 0.3, own_files=True) == (0, 0.3)
