"""gpt2x-evaluate evaluation=judge from the command line to its files, and the judge as the last stage of a run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import torch
from scripted_judge import Raw, scripted_judge, verdict

from gpt2x.commands import evaluate, train
from gpt2x.errors import UserError
from gpt2x.evaluation.judge import judging
from gpt2x.evaluation.judge.answers import partners, read_answers
from gpt2x.training.load import load_run

ROOT = Path(__file__).parents[2]
SMALL = [
    "task=instruct", "data=instructions_sample", "model.n_layer=1", "model.n_head=2", "model.n_embd=16",
    "model.context_length=128", "tokenizer.vocab_size=300", "trainer.max_steps=30", "trainer.eval_every=30",
    "optimizer.lr=0.03", "sampling.max_new_tokens=2", "device.threads=1", "logger=none", "data.test_fraction=0.1",
    "task.template=phi3",
]  # fmt: skip
FEW = ["evaluation=judge", "evaluation.max_examples=4", "evaluation.max_new_tokens=6", "device.threads=1"]
ITEM = [
    "id", "prompt", "instruction", "input", "reference", "answer", "finish", "reference_nats", "reference_tokens", "score",
    "scale", "reason", "raw", "error", "latency_s", "attempts", "seed", "cached", "judge",
]  # fmt: skip
PAIR = ["id", "prompt", "instruction", "input", "reference", "answer_a", "answer_b", "verdict", "orders", "judge"]
ORDER = ["first", "winner", "reason", "raw", "error", "latency_s", "attempts", "seed", "cached"]
BOOKS = [  # as the book's files are
    {"instruction": "Rewrite it.", "input": "It is fast.", "output": "As lightning.", "model_response": "As a bullet."},
    {"instruction": "Name a cloud.", "input": "", "output": "Cumulonimbus.", "model_response": "Cumulus."},
    {"instruction": "Name an author.", "input": "", "output": "Jane Austen.", "model_response": ""},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with two trained runs, `first` and `second`."""
    where = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "second")):
        assert train([*SMALL, f"seed={seed}", f"hydra.run.dir={where / name}", f"paths.outputs={where}"]) == 0
    return where


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setattr(judging, "FIRST_WAIT", 0.001)


@pytest.fixture
def server():
    with scripted_judge() as server:
        yield server


@pytest.fixture
def judged(server, capsys):
    """Run gpt2x-evaluate against the server: gives the exit code, what was printed, and the errors."""

    def call(*overrides: str) -> tuple[int, str, str]:
        capsys.readouterr()
        where = [] if any(o.startswith("judge=") for o in overrides) else [f"judge.url={server.url}"]
        return evaluate([*FEW, *where, "evaluation.folder=judged", *overrides]), *capsys.readouterr()

    return call


def lines(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def books(path="books.json", rows=BOOKS) -> str:
    Path(path).write_text(json.dumps(rows))
    return f"answers={path}"


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_runs_answers_to_the_test_split_are_made_kept_judged_and_told(judged, runs, server):
    kept_first = []
    server.script = lambda n, body: verdict(70 + n) if kept_first.append(Path("judged/answers.jsonl").exists()) is None else ""
    code, out, err = judged(f"checkpoint={runs / 'first'}", "output=result.json", "table=table.csv")
    assert (code, err) == (0, "")
    assert set(kept_first) == {True}  # before anything is asked
    answers, items = lines("judged/answers.jsonl"), lines("judged/items.jsonl")
    asked = [body["messages"][1]["content"] for body in server.real]
    assert len(answers) == len(items) == len(asked) == 4
    for item, answer in zip(items, answers):
        assert list(item) == ITEM
        assert {name: item[name] for name in answer} == answer
        assert (item["error"], item["attempts"], item["cached"], item["judge"]) == (None, 1, False, "ollama/llama3.2")
        assert item["finish"] in ("length", "end_of_text")
        assert any(f"<instruction>\n{item['instruction']}\n" in text for text in asked)
    assert sorted(item["score"] for item in items) == [71, 72, 73, 74]
    result = json.loads(Path("result.json").read_text())
    assert (result["split"], result["judge"], result["items"]) == ("test", "ollama/llama3.2", 4)
    assert result["score"]["value"] == 72.5
    assert result["companions"]["reference_perplexity"]["value"] > 1
    assert "72.5 (" in out
    assert Path("judged/judged.png").read_bytes().startswith(b"\x89PNG")
    table = pandas.read_csv("table.csv")
    assert table[["checkpoint", "evaluation", "score.value"]].values.tolist() == [[str(runs / "first"), "judge", 72.5]]


def test_the_answers_are_the_models_own_whatever_the_batch(judged, runs):
    made = []
    for size in (1, 3):
        judged(f"checkpoint={runs / 'first'}", f"evaluation.batch_size={size}")
        made.append([(row["answer"], row["finish"], round(row["reference_nats"], 3)) for row in lines("judged/answers.jsonl")])
    assert made[0] == made[1]
    run = load_run(runs / "first")
    row = lines("judged/answers.jsonl")[0]
    prompt = run.task.prompt(row["instruction"], row["input"])
    tokens = torch.tensor([run.tokenizer.encode(prompt).tolist()])
    greedy = []
    for _ in range(6):
        greedy.append(int(run.model(tokens)[0, -1].argmax()))
        tokens = torch.cat([tokens, torch.tensor([greedy[-1:]])], dim=1)
    end = run.tokenizer.end_of_text
    greedy = greedy[: greedy.index(end)] if end in greedy else greedy
    assert row["answer"] == run.tokenizer.decode(greedy)


def test_drawn_answers_follow_the_seed(judged, runs):
    made = []
    for seed in (1, 1, 2):
        judged(f"checkpoint={runs / 'first'}", "evaluation.temperature=1", f"evaluation.seed={seed}")
        made.append([row["answer"] for row in lines("judged/answers.jsonl")])
    assert made[0] == made[1] != made[2]


def test_judging_twice_costs_nothing_and_a_changed_rubric_judges_anew(judged, runs, server):
    for asked, more in ((5, []), (5, []), (10, ["judge.rubric=It rhymes."]), (10, [])):
        code, out, _ = judged(f"checkpoint={runs / 'first'}", *more)
        assert (code, len(server.asked)) == (0, asked)
    assert "From the cache: 4" in out
    assert all(item["cached"] for item in lines("judged/items.jsonl"))


def test_another_split_and_a_new_folder_each_time(judged, runs, server):
    for _ in range(2):
        assert evaluate([*FEW, f"judge.url={server.url}", f"checkpoint={runs / 'first'}", "split=val", "output=r.json"]) == 0
    folders = sorted(Path("outputs/judged").iterdir())
    assert len(folders) == 2
    assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == [
        ["answers.jsonl", "items.jsonl", "judged.png"]
    ] * 2
    assert json.loads(Path("r.json").read_text())["split"] == "val"


# -- files of answers --------------------------------------------------------------------------------------------------


def test_the_answers_of_a_file_need_no_run(judged, server):
    code, *_ = judged(books(), "evaluation.max_new_tokens=256", "output=result.json", "table=table.csv")
    assert code == 0
    items = lines("judged/items.jsonl")
    assert [(i["id"], i["answer"], i["score"], i["attempts"]) for i in items] == [
        (1, "As a bullet.", 80, 1),
        (2, "Cumulus.", 80, 1),
        (3, "", 0, 0),
    ]
    assert items[0]["prompt"] == "Rewrite it.\n\nIt is fast."
    assert json.loads(Path("result.json").read_text())["items"] == 3
    assert pandas.read_csv("table.csv")["checkpoint"].isna().all()
    assert not Path("judged/answers.jsonl").exists()  # they are there already


UNMADE = "evaluation.max_new_tokens=256"  # FEW's is for answers that are made


def test_another_field_and_json_lines(judged):
    rows = [{"instruction": "Say.", "output": "a", "model 1 response": "x", "model 2 response": "y"}]
    Path("two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert judged("answers=two.jsonl", "evaluation.answer_field=model 2 response", UNMADE)[0] == 0
    assert lines("judged/items.jsonl")[0]["answer"] == "y"
    code, _, err = judged("answers=two.jsonl", UNMADE)
    assert code == 1
    assert "two.jsonl, line 1: there is no field model_response or answer or text" in err
    assert "the fields here: instruction, output, model 1 response, model 2 response" in err


def test_items_that_were_judged_are_judged_by_another_judge_who_agrees_or_not(judged, server):
    assert judged(books(), UNMADE)[0] == 0
    server.script = lambda n, body: "70"
    book = ["judge=book", f"judge.url={server.url}"]
    assert judged("answers=judged/items.jsonl", UNMADE, *book, "evaluation.folder=again", "output=r.json")[0] == 0
    assert [(i["given"], i["score"], i["judge"]) for i in lines("again/items.jsonl")][:2] == [(80, 70, "book/llama3.2")] * 2
    found = json.loads(Path("r.json").read_text())["given"]
    assert (found["answers"], found["difference"]["value"]) == (3, pytest.approx(-20 / 3))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": "x", "answer": "y"}, "there is no field 'instruction'"),
        ({"instruction": 3, "answer": "y"}, "the field 'instruction' holds a number, not text"),
        ({"instruction": "x", "answer": None}, "the field 'answer' holds null, not text"),
        ({"instruction": "x", "answer": "\ud800"}, "the field 'answer' holds half a character"),
        ({"instruction": "x", "answer": "y", "id": [1]}, "the field 'id' holds neither text nor a whole number"),
        ("x", "this is no object of named fields"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(row, message):
    books("a.json", [BOOKS[0], row])
    with pytest.raises(UserError) as error:
        read_answers("a.json", "answers")
    assert f"answers=a.json: a.json, record 2: {message}" in str(error.value)


def test_an_empty_list_and_a_first_of_several_references():
    books("a.json", [])
    with pytest.raises(UserError, match=r"answers=a.json: the list holds no answer"):
        read_answers("a.json", "answers")
    books("a.json", [{"instruction": "x", "reference": ["b", "c"], "text": "y", "id": "q1", "input": None}])
    (answer,) = read_answers("a.json", "answers")
    assert (answer.id, answer.input, answer.reference, answer.answer) == ("q1", "", "b", "y")


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_in_both_orders(judged, runs, server):
    def always_the_first(n, body):
        return json.dumps({"reason": "It comes first.", "winner": "first"})

    server.script = always_the_first
    code, *_ = judged(f"checkpoint={runs / 'first'}", f"against={runs / 'second'}", "output=r.json")
    assert code == 0
    items, ours, theirs = (lines(f"judged/{name}.jsonl") for name in ("items", "answers", "against"))
    assert len(server.real) == 8
    for item, a, b in zip(items, ours, theirs, strict=True):
        assert list(item) == PAIR
        assert (item["answer_a"], item["answer_b"], item["verdict"]) == (a["answer"], b["answer"], "tie")
        assert [list(order) for order in item["orders"]] == [ORDER] * 2
        assert [(order["first"], order["winner"]) for order in item["orders"]] == [("a", "first"), ("b", "first")]
    result = json.loads(Path("r.json").read_text())
    assert (result["ties"], result["consistency"]["value"], result["first"]["value"]) == (4, 0, 1)


def test_a_judge_who_knows_is_followed_whatever_the_order(judged, server):
    def the_bullet(n, body):
        text = body["messages"][1]["content"]
        first = "<first_answer>\nAs a bullet" in text or "<first_answer>\nCumulus" in text
        return json.dumps({"reason": "", "winner": "first" if first else "second"})

    server.script = the_bullet
    others = [row | {"model_response": "No idea."} for row in BOOKS]
    books("others.json", others[::-1])  # in another order
    code, *_ = judged(books(), "against=others.json", UNMADE, "evaluation.max_examples=2")
    assert code == 0
    assert [item["verdict"] for item in lines("judged/items.jsonl")] == ["a", "a"]
    books("swapped.json", BOOKS)
    judged("answers=others.json", "against=swapped.json", UNMADE)
    assert [item["verdict"] for item in lines("judged/items.jsonl")][1:] == ["b", "b"]


def test_a_failure_in_one_order_is_no_verdict(judged, server):
    server.script = lambda n, body: json.dumps({"reason": "", "winner": "first"}) if n != 2 else Raw(400, b"no")
    books("same.json")
    code, *_ = judged(books(rows=BOOKS[:2]), "against=same.json", UNMADE, "judge.concurrency=1")
    assert code == 0
    found = lines("judged/items.jsonl")
    assert [item["verdict"] for item in found] == [None, "tie"]
    assert found[0]["orders"][1]["error"] == "HTTP status 400: no"


def test_scores_of_two_are_compared_answer_by_answer(judged, server):
    server.script = lambda n, body: verdict(30 if "No idea" in body["messages"][1]["content"] else 90)
    books("others.json", [row | {"model_response": "No idea.", "id": f"other {i}"} for i, row in enumerate(BOOKS)][::-1])
    arguments = [books(), "against=others.json", UNMADE, "evaluation.mode=absolute", "output=r.json"]
    code, out, _ = judged(*arguments)
    assert code == 0
    found = json.loads(Path("r.json").read_text())["comparison"]["measures"]["score"]
    assert (found["difference"]["value"], found["wins"], found["losses"]) == (pytest.approx(30), 2, 1)
    assert [item["id"] for item in lines("judged/items_against.jsonl")] == [1, 2, 3]
    assert "win / tie / loss" in out


def test_a_run_against_a_file_answers_what_the_file_asks(judged, runs, server):
    server.script = lambda n, body: json.dumps({"reason": "", "winner": "tie"})
    assert judged(books(), f"against={runs / 'second'}")[0] == 0
    assert [row["instruction"] for row in lines("judged/against.jsonl")] == [row["instruction"] for row in BOOKS]
    assert len(lines("judged/items.jsonl")) == 3


def test_what_has_no_counterpart_is_refused():
    books("a.json")
    books("b.json", BOOKS[:2])
    with pytest.raises(UserError, match="against: 1 of 3 answers have no counterpart, the first of them id 3"):
        partners(read_answers("a.json", "answers"), read_answers("b.json", "against"))


# -- other judges ------------------------------------------------------------------------------------------------------


def test_an_openai_compatible_judge_whose_key_is_written_nowhere(judged, server, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    hosted = ["judge=openai_compatible", f"judge.url={server.url}/v1", "judge.api_key_env=MY_KEY", "paths.cache=cache"]
    code, out, err = judged(books(), UNMADE, *hosted, "output=r.json", "table=t.csv")
    assert code == 0
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-very-secret"}
    server.script = lambda n, body: Raw(401, b'{"error": {"message": "Incorrect API key"}}')
    code, out2, err2 = judged(books(rows=[BOOKS[0] | {"input": "other"}]), UNMADE, *hosted)
    assert code == 1
    assert "HTTP status 401: Incorrect API key" in err2
    written = [path.read_bytes() for path in Path(".").rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not any(b"very-secret" in text for text in written)
    assert "very-secret" not in out + err + out2 + err2 + caplog.text


def test_the_book_counts_what_it_cannot_read(judged, server):
    said = iter(["100", "85", "Score: 20", "20"])
    server.script = lambda n, body: next(said)
    code, out, _ = judged(books(), UNMADE, "judge=book", f"judge.url={server.url}", "judge.concurrency=1", "output=r.json")
    assert code == 0
    result = json.loads(Path("r.json").read_text())
    assert (result["items"], result["scored"], result["failed"]) == (3, 2, 1)
    assert result["failures"] == [{"id": 2, "error": "the reply is no whole number: 'Score: 20'"}]
    assert "the reply is no whole number" in out


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["checkpoint=null"], 2, "checkpoint= or answers=, and neither is given"),
        (["checkpoint=run", "answers=books.json"], 2, "checkpoint= or answers=, and both are given"),
        (["answers=nowhere.json"], 2, "answers=nowhere.json: no such file"),
        (["answers=books.json", "against=nowhere"], 2, "against=nowhere: neither a file of answers nor the folder of a run"),
        (["answers=books.json", "split=test"], 2, "split=test: the answers of a file are judged"),
        (["answers=books.json", "data=instructions_sample"], 2, "data=instructions_sample: the answers of a file are judged"),
        (["answers=books.json", "evaluation.max_new_tokens=6"], 2, "evaluation.max_new_tokens=6: the answers of a file are"),
        (["answers=books.json", "evaluation.mode=pairwise"], 2, "evaluation.mode=pairwise: there is nothing to compare"),
        (["answers=books.json", "evaluation.against_field=x"], 2, "evaluation.against_field=x: is of against="),
        (["answers=books.json", "evaluation.folder=books.json"], 2, "evaluation.folder=books.json: is a file"),
        (["answers=books.json", "judge=book", "against=books.json"], 2, "judge=book: the book's judge scores"),
        (["answers=books.json", "judge=book", "judge.rubric=x"], 2, "judge.rubric=x: this choice of judge has no such setting"),
        (["answers=books.json", "judge.scale=1-10"], 2, "judge.scale=1-10: expected one of 0-100, 1-5"),
        (["answers=books.json", "judge.rubric= "], 2, "expected words"),
        (["answers=books.json", "judge=openai_compatible", "judge.body={messages: 1}"], 2, "messages is gpt2x's own"),
        (["answers=books.json", "judge=openai_compatible", "judge.url=ftp://x"], 2, "judge.url=ftp://x: expected http://"),
        (["answers=books.json", "judge.url=http://me:password@x"], 2, "judge.url=http://...@x: holds a name or a password"),
        (["answers=books.json", "judge=openai_compatible", "judge.api_key_env=NO_KEY"], 2, "there is no such variable"),
        (
            ["answers=books.json", "judge=openai_compatible", "judge.api_key_env=sk-123"],
            2,
            "no name of an environment variable",
        ),
        (["answers=books.json", "evaluation=perplexity"], 2, "answers=books.json: is for evaluation=judge"),
        (["checkpoint=run", "evaluation=rouge", "judge=book"], 2, "judge=book: is for evaluation=judge"),
        (["evaluation=rouge"], 2, "checkpoint must be given: the folder of a run, or of a model of OpenAI's or Hugging Face's"),
    ],
)
def test_what_cannot_be_used_is_named_with_a_remedy(capsys, overrides, code, message):
    books()
    kind = [] if any(override.startswith("evaluation=") for override in overrides) else ["evaluation=judge"]
    assert evaluate([*kind, *overrides]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert "password@" not in err
    assert "sk-123" not in err


def test_no_server_and_no_model(judged, server):
    code, _, err = judged(books(), UNMADE, "judge.model=phi")
    assert code == 1
    assert "judge.model=phi: Ollama has no such model; it has llama3.2:latest\n  ollama pull phi" in err
    code, _, err = judged(books(), UNMADE, "judge.url=127.0.0.1:9")
    assert code == 1
    assert "the judge's server does not answer at http://127.0.0.1:9/api/tags: the connection failed: " in err
    assert "start it with `ollama serve`" in err


def test_what_fails_before_anything_is_written_leaves_no_folder_and_what_does_not_is_told(judged, server):
    before = set(Path("outputs/judged").glob("*"))
    assert judged(books(), UNMADE, "judge.model=phi", "evaluation.folder=null")[0] == 1
    assert set(Path("outputs/judged").glob("*")) == before
    code, out, _ = judged(books(), UNMADE, "evaluation.folder=null")
    (made,) = set(Path("outputs/judged").glob("*")) - before
    assert code == 0 and re.search(rf"^folder +{re.escape(str(made))}$", out, flags=re.MULTILINE)
    assert (made / "items.jsonl").is_file()


def test_answers_that_are_judged_already_keep_the_judge_s_score_and_an_id_is_one_answer_s(tmp_path):
    base = {"instruction": "Say it.", "output": "it", "answer": "it", "id": "a"}
    path = tmp_path / "answers.jsonl"
    judged_already = base | {"judge": "llama", "score": 4, "scale": [1, 5], "given": 90}
    path.write_text(json.dumps(judged_already) + "\n" + json.dumps(base | {"id": "b", "score": 70}) + "\n")
    first, second = read_answers(str(path), "answers")
    assert (first.given, first.given_scale) == (4, "[1, 5]")
    assert (second.given, second.given_scale) == (70, None)
    path.write_text(json.dumps(base) + "\n" + json.dumps(base) + "\n")
    with pytest.raises(UserError, match="line 2: the id 'a' is that of line 1 too"):
        read_answers(str(path), "answers")


def test_failures_are_told_and_may_count_as_the_worst_or_be_an_error(judged, server):
    server.script = lambda n, body: "nonsense" if "Cumulus." in body["messages"][1]["content"] else verdict(90)
    for how, value in (("exclude", 45), ("lowest", 30)):
        code, out, _ = judged(books(), UNMADE, f"evaluation.on_failure={how}", "judge.retries=1", "output=r.json")
        result = json.loads(Path("r.json").read_text())
        assert (code, result["score"]["value"], result["failed"]) == (0, value, 1)
        assert result["failures"] == [{"id": 2, "error": "the reply is no JSON: 'nonsense'"}]
        assert "the reply is no JSON: 'nonsense'" in out
    assert judged(books(), UNMADE, "evaluation.on_failure=raise", "judge.retries=1")[0] == 1
    assert lines("judged/items.jsonl")[1]["raw"] == "nonsense"


def test_without_any_verdict_there_is_no_report(judged, server):
    server.script = lambda n, body: verdict() if n == 0 else "nonsense"
    code, _, err = judged(books(rows=BOOKS[:2]), UNMADE, "judge.retries=0")
    assert code == 1
    assert "ollama/llama3.2 gave not a single verdict; the first problem: the reply is no JSON: 'nonsense'" in err


def test_what_was_judged_before_the_server_went_is_kept(judged, server, caplog):
    rows = [BOOKS[0] | {"input": f"number {i}"} for i in range(12)]
    server.script = lambda n, body: verdict() if n < 5 else Raw(503, b"{}")
    code, _, err = judged(books(rows=rows), UNMADE, "judge.retries=0", "judge.concurrency=1", "evaluation.max_examples=12")
    assert code == 1
    assert "4 of 12 verdicts are there and kept: the same command goes on" in caplog.text
    assert "the judge's server has stopped answering: HTTP status 503" in err
    server.script = lambda n, body: verdict()
    asked = len(server.real)
    assert judged(books(rows=rows), UNMADE, "evaluation.max_examples=12")[0] == 0
    assert len(server.real) == asked + 8


def start(url: str, *overrides: str) -> subprocess.Popen:
    arguments = ["evaluation=judge", f"judge.url={url}", "evaluation.folder=judged", "judge.concurrency=1", *overrides]
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_an_interrupted_judgement_goes_on_where_it_was(server, number):
    rows = [BOOKS[0] | {"input": f"number {i}"} for i in range(9)]
    books(rows=rows)
    server.script = lambda n, body: verdict(n) if n < 6 else Raw(200, b"", seconds=30)
    process = start(server.url, "answers=books.json")
    end = time.monotonic() + 120
    while len(server.asked) < 7:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
    started = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert time.monotonic() - started < 20  # although a reply is 30 s away
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "5 of 9 verdicts are there and kept: the same command goes on" in said
        assert "gpt2x-evaluate: interrupted" in said
        assert "Traceback" not in said
    server.script = lambda n, body: verdict(99)
    asked = len(server.real)
    assert start(server.url, "answers=books.json").wait(timeout=120) == 0
    assert len(server.real) == asked + 4
    assert [item["score"] for item in lines("judged/items.jsonl")] == [1, 2, 3, 4, 5, 99, 99, 99, 99]
    assert not [path for path in Path("outputs/cache").rglob("*") if path.is_file() and path.suffix != ".json"]


# -- the last stage of a run -------------------------------------------------------------------------------------------

SHORT = [*SMALL, "trainer.max_steps=2", "trainer.eval_every=2"]
LAST = ["evaluation=judge", "evaluation.max_examples=3", "evaluation.max_new_tokens=4", "hydra.run.dir=run"]


def test_a_run_that_has_ended_is_judged(server, capsys):
    assert train([*SHORT, *LAST, f"judge.url={server.url}"]) == 0
    out = capsys.readouterr().out
    assert "3 answers judged by ollama/llama3.2" in out
    assert "3 answers judged by ollama/llama3.2" in Path("run/run.log").read_text()
    result = json.loads(Path("run/result.json").read_text())
    assert (result["status"], result["evaluation"]["score"]["value"], result["evaluation"]["items"]) == ("finished", 80, 3)
    assert sorted(path.name for path in Path("run/judged").iterdir()) == ["answers.jsonl", "items.jsonl", "judged.png"]
    assert len(server.real) == 3
    own = [row["answer"] for row in lines("run/judged/answers.jsonl")]
    more = ["evaluation=judge", f"judge.url={server.url}", "evaluation.max_examples=3", "evaluation.max_new_tokens=4"]
    assert evaluate([*more, "checkpoint=run", "evaluation.folder=later", "device.threads=1"]) == 0
    assert [row["answer"] for row in lines("later/answers.jsonl")] == own
    assert len(server.real) == 3  # all of them are known


def test_other_evaluations_are_a_last_stage_too(capsys):
    assert (
        train([*SHORT, "evaluation=rouge", "evaluation.max_examples=2", "evaluation.max_new_tokens=4", "hydra.run.dir=run"])
        == 0
    )
    result = json.loads(Path("run/result.json").read_text())
    assert result["evaluation"]["examples"] == 2
    assert "2 examples" in capsys.readouterr().out


def test_a_judge_that_is_not_there_is_told_before_the_training(capsys):
    assert train([*SHORT, *LAST, "judge.url=127.0.0.1:9"]) == 1
    assert "the judge's server does not answer" in capsys.readouterr().err
    assert not Path("run").exists() or not any(Path("run").iterdir())


def test_a_judge_that_fails_costs_the_judgement_and_not_the_run(server, capsys):
    server.script = lambda n, body: "nonsense"
    assert train([*SHORT, *LAST, f"judge.url={server.url}", "judge.retries=0"]) == 0
    out = capsys.readouterr().out
    assert "not measured: the judge ollama/llama3.2 gives no verdict on a trial question" in out
    assert "later    gpt2x-evaluate checkpoint=run evaluation=judge" in out
    result = json.loads(Path("run/result.json").read_text())
    assert result["status"] == "finished"
    assert "gives no verdict on a trial question" in result["evaluation"]["error"]


def test_a_fault_of_ours_costs_no_run_either_and_is_told_whole(server, capsys, monkeypatch):
    monkeypatch.setattr("gpt2x.training.run.measure", lambda config: 1 / 0)
    assert train([*SHORT, *LAST, f"judge.url={server.url}"]) == 0
    assert "not measured: division by zero\nTraceback" in capsys.readouterr().out
    assert json.loads(Path("run/result.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["judge=ollama"], "judge=ollama: is for evaluation=judge"),
        (["evaluation=perplexity"], "evaluation=perplexity: this measures a language model, and the run trains a model tuned"),
        (["evaluation=judge", "evaluation.mode=pairwise"], "evaluation.mode=pairwise: there is nothing to compare"),
        (["evaluation=judge", "judge=book", "judge.scale=1-5"], "judge.scale=1-5: this choice of judge has no such setting"),
    ],
)
def test_a_last_stage_that_cannot_be_is_refused_before_the_training(capsys, overrides, message):
    assert train([*SHORT, *overrides]) == 2
    assert message in capsys.readouterr().err


def test_the_last_stage_decides_nothing_about_the_run(server):
    assert train([*SHORT, "hydra.run.dir=plain"]) == 0
    assert train([*SHORT, *LAST, f"judge.url={server.url}"]) == 0
    hashes = [json.loads(Path(name, "result.json").read_text())["config_hash"] for name in ("plain", "run")]
    assert hashes[0] == hashes[1]
    more = ["evaluation=judge", "judge=ollama", f"judge.url={server.url}", "evaluation.max_examples=2"]
    assert train(["resume=plain", *more]) == 0  # it can still be added
    assert json.loads(Path("plain/result.json").read_text())["evaluation"]["items"] == 2
