"""gpt2x-generate with a classifier that was just trained: one text, typed ones, and tables that come out with columns more."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.commands import generate, train
from gpt2x.config.option import ConfigError
from gpt2x.errors import UserError
from gpt2x.generation.classify import Item, describe, read_items, writer
from gpt2x.training.load import load_run

ROOT = Path(__file__).parents[2]
LABELS = ["ja, %", "nein", "viel leicht"]  # what a label may hold
TEXTS = ["Yes, gladly!", "No. Never, not with me, and not on a day like this one.", 'Maybe\nlater, "they" say', "Größe 🙂", "x"]
ADDED = ["predicted", "confidence", *(f"probability {label}" for label in LABELS)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classify")
    words = {"ja, %": ["Yes", "gladly", "sure"], "nein": ["No", "never", "not"], "viel leicht": ["Maybe", "later", "perhaps"]}
    rows = [(label, f"{a} {b} {n}") for label, of in words.items() for n in range(4) for a in of for b in of]
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([("label", "text"), *rows])
    small = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.context_length=16", "device.threads=1"]
    data = ["task=classifier", "data=table", f"data.path={folder / 'train.csv'}", "tokenizer=bpe", "tokenizer.vocab_size=300"]
    more = ["trainer.max_steps=30", "trainer.eval_every=30", "optimizer.lr=3e-3", "logger=none"]
    assert train([*small, *data, *more, f"hydra.run.dir={folder / 'run'}", f"paths.outputs={folder}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def expected(run):
    """The probabilities of a text, from the definition: alone, with neither padding nor a prepared model."""
    loaded = load_run(run)

    def probabilities(text: str) -> np.ndarray:
        tokens = torch.from_numpy(loaded.tokenizer.encode(text).astype(np.int64))[:16]
        with torch.no_grad():
            logits = loaded.model(tokens[None], torch.tensor([len(tokens)]))[0].double().numpy()
        return np.exp(logits) / np.exp(logits).sum()

    return probabilities


@pytest.fixture
def classify(run, capsys, tmp_path, monkeypatch):
    """Run gpt2x-generate: gives the exit code, the standard output and the standard error."""
    monkeypatch.chdir(tmp_path)

    def classify(*arguments: str) -> tuple[int, str, str]:
        code = generate([f"checkpoint={run}", "device.threads=1", *arguments])
        return code, *capsys.readouterr()

    return classify


def table(path: Path | str, **dialect) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, **dialect))


def write_table(path: str, rows: list[dict[str, str]], **dialect) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        made = csv.DictWriter(file, rows[0], **dialect)
        made.writeheader()
        made.writerows(rows)


def check(record: dict, probabilities: np.ndarray) -> None:
    """A record, of CSV or JSON, tells these probabilities."""
    told = [float(record[f"probability {label}"]) for label in LABELS]
    np.testing.assert_allclose(told, probabilities, rtol=2e-5, atol=1e-9)
    assert record["predicted"] == LABELS[int(np.argmax(probabilities))]
    assert float(record["confidence"]) == max(told)


# -- one text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_one_text_and_how_sure_it_is(classify, expected, text):
    code, out, err = classify(f"prompt={text}")
    p = expected(text)
    order = np.argsort(-p, kind="stable")
    assert (code, err) == (0, "")
    assert out == ", ".join(f"{LABELS[i]} {100 * p[i]:.1f} %" for i in order) + "\n"
    code, out, _ = classify(f"prompt={text}", "format=jsonl")
    record = json.loads(out)
    assert list(record) == ["text", *ADDED] and record["text"] == text
    check(record, p)


@pytest.mark.parametrize("how", ["generation.weights=int8", "generation.weights=bf16", "device.precision=bf16"])
def test_rounded_weights_say_nearly_the_same(classify, expected, how, kernels, monkeypatch):
    monkeypatch.setattr("gpt2x.device._cpu_has_bf16", lambda: True)  # without such instructions it is slow, no more
    code, out, err = classify("prompt=No, never", "format=jsonl", how, f"paths.cache={kernels}")
    assert (code, err) == (0, "")
    told = [json.loads(out)[f"probability {label}"] for label in LABELS]
    np.testing.assert_allclose(told, expected("No, never"), atol=0.05)
    assert sum(told) == pytest.approx(1, abs=1e-4)


def test_a_text_longer_than_the_context_loses_its_end(classify, expected, caplog):
    text = " ".join(f"word{n}" for n in range(40))
    _, out, _ = classify(f"prompt={text}", "format=jsonl")
    assert caplog.messages == ["1 of 1 texts are longer than 16 tokens; their ends are not read"]
    check(json.loads(out), expected(text))


def test_a_sweep_classifies_with_each(classify):
    code, out, _ = classify("-m", "prompt=No", "generation.weights=fp32,int8")
    assert code == 0
    assert len([line for line in out.splitlines() if "nein " in line and " %, " in line]) == 2


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_all_classes_are_told_likeliest_first(weights):
    total = sum(weights) or 1
    p = [weight / total for weight in weights]
    told = [part.rsplit(" ", 2) for part in describe(p, [f"c{i}" for i in range(len(p))]).split(", ")]
    assert sorted(name for name, _, _ in told) == sorted(f"c{i}" for i in range(len(p)))
    shares = [p[int(name[1:])] for name, _, _ in told]
    assert shares == sorted(p, reverse=True)
    assert [number for _, number, _ in told] == [f"{100 * share:.1f}" for share in shares]


# -- many texts ---------------------------------------------------------------------------------------------


def test_a_table_comes_out_with_columns_more(classify, expected, tmp_path):
    rows = [{"n": f"{n}", "text": text, "a, b": '"é"\r\n;', "empty": ""} for n, text in enumerate(TEXTS * 9)]
    write_table("in.csv", rows)
    code, out, err = classify("prompt_file=in.csv", "output=new/out.csv")
    assert (code, out, err) == (0, "", "")
    made = table("new/out.csv")
    assert list(made[0]) == ["n", "text", "a, b", "empty", *ADDED]
    assert [{key: row[key] for key in rows[0]} for row in made] == rows
    for row in made:
        check(row, expected(row["text"]))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.csv"]


def test_the_batch_changes_nothing(classify):
    write_table("in.csv", [{"text": f"{text} {n}"} for n, text in enumerate(TEXTS * 8)])
    made = {}
    for size in (1, 2, 7, 64):
        assert classify("prompt_file=in.csv", f"output={size}.csv", f"generation.batch_size={size}") == (0, "", "")
        made[size] = table(f"{size}.csv")
    for size in (2, 7, 64):
        for one, other in zip(made[1], made[size], strict=True):
            assert (one["text"], one["predicted"]) == (other["text"], other["predicted"])
            for name in ADDED[1:]:
                assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-5)


def test_every_kind_of_file_and_every_format(classify, expected):
    """What goes in as CSV, TSV, JSON lines or lines comes out as any of CSV, JSON lines and text."""
    texts = ["No, never", 'Maybe "later"', "Größe 🙂"]
    rows = [{"who": "é", "message": text} for text in texts]
    write_table("in.csv", rows)
    write_table("in.TSV", rows, delimiter="\t")
    Path("in.jsonl").write_text("\n".join(json.dumps(row | {"more": [1, None, {"a": "ü"}]}) for row in rows))
    Path("in.txt").write_text("\ufeff" + "\r\n\n".join(texts), encoding="utf-8")
    shown = [", ".join(f"{LABELS[i]} {100 * p[i]:.1f} %" for i in np.argsort(-p)) for p in map(expected, texts)]
    for name, lines in (("in.csv", (2, 3, 4)), ("in.TSV", (2, 3, 4)), ("in.jsonl", (1, 2, 3)), ("in.txt", (1, 3, 5))):
        given = [f"prompt_file={name}", "text_column=message"]
        assert classify(*given) == (0, "".join(f"{n}: {line}\n" for n, line in zip(lines, shown)), "")
        records = [json.loads(line) for line in classify(*given, "format=jsonl")[1].splitlines()]
        made = list(csv.DictReader(io.StringIO(classify(*given, "format=csv")[1], newline="")))
        for text, record, row in zip(texts, records, made, strict=True):
            assert record["message"] == row["message"] == text
            check(record, expected(text))
            check(row, expected(text))
            if name != "in.txt":
                assert record["who"] == row["who"] == "é"
            if name == "in.jsonl":
                assert record["more"] == json.loads(row["more"]) == [1, None, {"a": "ü"}]
    assert classify("prompt_file=in.csv", "text_column=message", "output=o.jsonl")[0] == 0  # as its name ends
    assert [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()] == [
        {"who": "é"} | {key: record[key] for key in ("message", *ADDED)} for record in records
    ]


def test_rows_of_json_lines_need_not_have_the_same_columns(classify):
    Path("in.jsonl").write_text('{"text": "No", "a": null, "b": true}\n{"text": "Yes", "c": 1.5}\n')
    _, out, _ = classify("prompt_file=in.jsonl", "format=csv")
    one, two = csv.DictReader(io.StringIO(out))
    assert [one[key] for key in ("text", "a", "b", "c")] == ["No", "", "true", ""]
    assert [two[key] for key in ("text", "a", "b", "c")] == ["Yes", "", "", "1.5"]


@given(st.lists(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0"))] * 2), min_size=1))
def test_what_stands_in_a_table_stays_as_it_is(tmp_path_factory, rows):
    rows = [{"text": f"x{text}", "other, one": other} for text, other in rows]
    path = tmp_path_factory.mktemp("tables") / "in.csv"
    write_table(str(path), rows, quoting=csv.QUOTE_ALL)
    items = read_items(str(path), "text")
    assert [item.columns for item in items] == rows
    written = []
    add = writer("csv", written.append, items, LABELS)
    for item in items:
        add(item, np.array([0.2, 0.5, 0.3]))
    made = list(csv.DictReader(io.StringIO("".join(written), newline="")))
    assert [{key: row[key] for key in rows[0]} for row in made] == rows
    assert {row["predicted"] for row in made} == {"nein"}


def test_texts_from_a_pipe(classify, monkeypatch, expected):
    for data, lines in ((b"No\n\nYes\n", (1, 3)), (b'{"text": "No", "id": 4}\n{"text": "Yes"}\n', (1, 2))):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        code, out, err = classify("prompt_file=-")
        assert (code, err) == (0, "")
        assert [line.split(": ")[0] for line in out.splitlines()] == [str(n) for n in lines]
        assert out.splitlines()[1].split(": ")[1] == describe(expected("Yes"), LABELS)


# -- typed --------------------------------------------------------------------------------------------------


def start(run: Path, cwd: Path, *arguments: str, **pipes) -> subprocess.Popen:
    code = "import sys; from gpt2x.commands import generate; sys.exit(generate(sys.argv[1:]))"
    command = [sys.executable, "-c", code, f"checkpoint={run}", "device.threads=1", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **pipes)


@pytest.mark.skipif(os.name == "nt", reason="no pipes like these")
def test_what_is_typed_is_classified_line_by_line(run, tmp_path, expected):
    process = start(run, tmp_path, "interactive=true", stdin=subprocess.PIPE)
    typed = 'No\n\n  \n/temperature 1\n/quot\n/help\n"""Maybe\n/later"""\nGröße\n/quit\nYes\n'
    out, err = process.communicate(typed.encode(), timeout=100)
    assert process.returncode == 0
    shown = [describe(expected(text), LABELS) for text in ("No", "Maybe\n/later", "Größe")]
    assert out.decode() == "".join(f"{line}\n" for line in shown)
    said = err.decode()
    assert said.startswith("there is nothing in it to classify\n/temperature: no such command\n  commands: /help, /quit\n")
    assert "/quot: no such command; did you mean /quit?" in said
    assert '  """TEXT"""  a text of several lines' in said and "sampling" not in said


# -- what goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("id,message\n1,a\n", "text_column=text: prompt_file=in.csv has no such column; it has [id,message]\n  name the one"),
        ("", "prompt_file=in.csv: the table has no row"),
        ("text,id\n", "prompt_file=in.csv: the table has no row"),
        ("text,id\na,1\n\n ,2\nb,3,4\n,5\n", "prompt_file=in.csv: 3 faults"),
        ("text,text\na,b\n", "the header names a column twice: text"),
        ("text,predicted\na,b\n", "there is a column 'predicted' already"),
        ("text,probability nein\na,b\n", "there is a column 'probability nein' already"),
        (b"text\ncaf\xe9\n", "in.csv: not valid UTF-8 in line 2"),
        (b"text\na\0\n", "is NUL"),
        ("text\n" + '"' + "a" * 200_000, "in.csv: line 2 cannot be read"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(classify, tmp_path, content, problem):
    Path("in.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = classify("prompt_file=in.csv", "output=out.csv")
    assert code == (2 if "text_column" in problem else 1) and out == ""
    assert problem in err and "data." not in err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "outputs") == ["in.csv"]


def test_every_fault_is_told_with_its_line(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n{"text": ""}\n\n{"txt": "b"}\n[1]\n{\n{"text": "\\ud800"}\n')
    with pytest.raises(UserError) as error:
        read_items(str(path), "text")
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"prompt_file={path}: 6 faults")
    assert lines[1:4] == [
        "  1 have something else than a text: line 2: int",
        "  1 have an empty text: line 3",
        "  1 have no text: line 5",
    ]
    assert lines[4].startswith("  2 cannot be read: line 6: no JSON object, such as {...}, line 7: no JSON")
    assert lines[5] == "  1 have a text with half a character (a lone surrogate): line 8"


def test_files_that_are_none_of_these_are_refused(tmp_path):
    for name, problem in (("a.parquet", "Parquet is not read here"), ("b.csv", "cannot be read"), ("c.txt", "cannot be read")):
        with pytest.raises(UserError, match=problem):
            read_items(str(tmp_path / name), "text")
    (tmp_path / "d.txt").write_text("\n\n")
    with pytest.raises(UserError, match="holds no prompt"):
        read_items(str(tmp_path / "d.txt"), "text")


def test_text_alone_may_have_any_columns():
    item = Item("a", 1, {"text": "a", "predicted": "b"})
    written = []
    writer("text", written.append, [item], ["a", "b"])(item, np.array([0.25, 0.75]))
    assert written == ["b 75.0 %, a 25.0 %\n"]
    with pytest.raises(UserError, match="there is a column 'predicted' already"):
        writer("jsonl", written.append, [item], ["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ([], 2, "prompt=null: checkpoint="),
        (["prompt= "], 2, "there is nothing in it to classify"),
        (["instruction=Do"], 2, "instruction=Do: is for a model tuned to instructions; checkpoint="),
        (["prompt=a", "format=jsonl", "sampling.top_logprobs=1"], 2, "sampling.top_logprobs=1: is for generating text"),
        (["prompt=a", "sampling.samples=2"], 2, "sampling.samples=2: is for generating text"),
        (["prompt=a", "sampling.stop=[x]"], 2, "sampling.stop=[x]: is for generating text"),
        (["prompt=a", "sampling=beam"], 2, "is for generating text"),
        (["prompt=a", "generation.lookup=2"], 2, "generation.lookup=2: is for generating text"),
        (["prompt=a", "generation.past_context=stop"], 2, "generation.past_context=stop: is for generating text"),
        (["interactive=true", "format=csv"], 2, "format=csv: interactive=true shows text"),
        (["prompt=a", "output=."], 1, "output=.: this is a folder"),
        (["prompt=a", "output=file/o.csv"], 1, "output=file/o.csv: cannot be written"),
        (["prompt_file=file", "output=file"], 2, "output=file: this is prompt_file"),
    ],
)
def test_what_cannot_be_is_refused(classify, arguments, code, problem):
    Path("file").write_text("a\n")
    found, out, err = classify(*arguments)
    assert (found, out) == (code, "")
    assert problem in err
    assert Path("file").read_text() == "a\n"


def test_what_was_asked_of_a_classifier_is_refused_before_torch_is_there(run, tmp_path):
    code = (
        "import sys; from gpt2x.commands import generate; code = generate(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, f"checkpoint={run}", "instruction=Do"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=100)
    assert done.returncode == 2, done.stderr.decode()


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
def test_an_interruption_loses_no_finished_prediction(run, tmp_path):
    write_table(str(tmp_path / "in.csv"), [{"id": f"{n}", "text": f"No {n}"} for n in range(50_000)])
    process = start(run, tmp_path, "prompt_file=in.csv", "output=out.csv", "generation.batch_size=1")
    partial = tmp_path / "out.csv.partial"
    deadline = time.monotonic() + 100
    while not partial.exists() or partial.read_text().count("\n") < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err.decode().splitlines() == ["what was made until now is in out.csv.partial", "gpt2x-generate: interrupted"]
    assert [row["id"] for row in table(partial)][:16] == [f"{n}" for n in range(16)]
    assert not (tmp_path / "out.csv").exists()
    process = start(run, tmp_path, "prompt=No", "output=out.csv")
    assert "holds what an interrupted run has made" in process.communicate(timeout=60)[1].decode()


def test_a_column_is_asked_for_by_its_name(tmp_path):
    (tmp_path / "in.csv").write_text("text, message \na,b\n")
    assert [item.text for item in read_items(str(tmp_path / "in.csv"), "message")] == ["b"]
    with pytest.raises(ConfigError, match="it has \\[text,message\\]"):
        read_items(str(tmp_path / "in.csv"), "Message")
