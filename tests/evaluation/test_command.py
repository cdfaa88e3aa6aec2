"""gpt2x-evaluate on a real run, from the command line to the file it writes."""

from __future__ import annotations

import copy
import json
import math

import pandas
import pytest
import torch

from gpt2x.commands import evaluate
from gpt2x.config.compose import compose
from gpt2x.config.schema import EvaluateConfig
from gpt2x.evaluation import run as evaluation_run
from gpt2x.tokenizer.config import CharTokenizerConfig
from gpt2x.training.load import load_run
from gpt2x.training.run import train


@pytest.fixture
def run(small_run, tmp_path, monkeypatch):
    """A trained run in the current folder, whose text is there too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2X_MIRROR", raising=False)
    train(small_run(), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def measure(run, capsys):
    """Evaluate the run with `overrides`; gives the exit code, what was printed, the errors, and the JSON that was written."""

    def call(*overrides: str) -> tuple[int, str, str, dict | None]:
        capsys.readouterr()
        code = evaluate(["checkpoint=run", "output=result.json", "device.threads=1", *overrides])
        written = run.parent / "result.json"
        result = json.loads(written.read_text()) if written.exists() else None
        written.unlink(missing_ok=True)
        return code, *capsys.readouterr(), result

    return call


def test_documents_are_the_default_and_everything_is_told(measure, run):
    code, out, err, result = measure()
    assert (code, err) == (0, "")
    assert (result["evaluation"], result["mode"], result["checkpoint"]) == ("perplexity", "documents", "run")
    assert (result["data"], result["split"], result["documents"]) == ("text", "val", 1)
    assert (result["weights"], result["precision"], result["device"]) == ("fp32", "fp32", "cpu, 1 thread, fp32")
    assert (result["context_length"], result["stride"]) == (16, 8)
    assert result["step"] in (4, 8, 12)
    assert result["versions"]["torch"] == torch.__version__
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert result["tokens_per_s"] == pytest.approx(result["tokens"] / result["seconds"])
    printed = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert printed.keys() == result.keys() - {"versions"}
    assert float(printed["loss"]) == pytest.approx(result["loss"], rel=1e-4)
    assert printed["tokens"] == f"{result['tokens']:,}"


def test_windows_end_to_end_repeat_the_runs_own_validation_loss(measure, run):
    told = json.loads((run / "result.json").read_text())
    for which, loss in (("best", told["metric"]["value"]), ("last", told["last"]["val/loss"])):
        *_, result = measure("evaluation.mode=strided", "evaluation.stride=16", f"which={which}")
        assert result["loss"] == pytest.approx(loss, rel=1e-6)
    assert result["step"] == 12
    assert result["documents"] is None


def test_every_byte_of_a_text_of_ones_own_is_counted(measure, tmp_path):
    (tmp_path / "notes.txt").write_text("Words that the run has not seen — é, ü, 你好.\n" * 30)
    arguments = ["data=text", "data.path=notes.txt", "data.val_fraction=0", "split=train"]
    *_, result = measure(*arguments)
    assert result["bytes"] == (tmp_path / "notes.txt").stat().st_size
    (tmp_path / "parts").mkdir()
    for name in "ab":
        (tmp_path / "parts" / f"{name}.txt").write_text((tmp_path / "notes.txt").read_text())
    *_, both = measure("data=text", "data.path=parts", "data.val_fraction=0", "split=train")
    assert both["documents"] == 2
    assert both["bytes"] == 2 * result["bytes"]
    assert both["tokens"] == 2 * (result["tokens"] + 1)  # each document's end is predicted too


def test_another_part_of_another_corpus(measure):
    code, _, _, result = measure("data=storybook", "data.val_fraction=0.01", "data.test_fraction=0.02", "split=test")
    assert code == 0
    assert (result["data"], result["split"]) == ("storybook", "test")
    assert result["documents"] >= 1


def test_a_sweep_over_strides(run, capsys):
    assert evaluate(["checkpoint=run", "device.threads=1", "evaluation.mode=strided", "-m", "evaluation.stride=4,16"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("stride ")] == ["4", "16"]
    assert sorted(path.name for path in run.parent.iterdir()) == ["cache", "outputs", "run", "text.txt"]


# Reduced weights


@pytest.fixture
def prepared(monkeypatch):
    """Stands in for the layers prepared for a processor: weights rounded to bfloat16. Gives what it was called with."""
    calls = []

    def prepare(model, *, weights="fp32", precision="fp32", cache, with_head=True):
        calls.append((weights, precision, str(cache)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())
        return model

    monkeypatch.setattr("gpt2x.model.prepared.prepare", prepare)
    return calls


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_reduced_weights_are_measured_beside_those_of_the_checkpoint(measure, prepared, weights):
    *_, exact = measure()
    assert prepared == []
    code, out, _, result = measure(f"generation.weights={weights}", "evaluation.against_fp32=true", "paths.cache=cache")
    assert code == 0
    assert prepared == [(weights, "fp32", "cache")]
    told = result["against_fp32"]
    assert told["loss_fp32"] == pytest.approx(exact["loss"], rel=1e-6)
    assert result["loss"] != exact["loss"]
    assert told["loss_difference"] == pytest.approx(result["loss"] - exact["loss"], abs=1e-6)
    assert 0.5 < told["top1_agreement"] <= 1
    assert 0 < told["kl"] < 0.01
    assert "against_fp32.top1_agreement" in out


def test_bf16_on_a_processor_goes_through_the_prepared_layers_without_autocast(run, prepared, monkeypatch):
    monkeypatch.setattr(torch, "autocast", None)
    config = compose("evaluate", EvaluateConfig, ["checkpoint=run", "device.precision=bf16", "device.threads=1"])
    result = evaluation_run.evaluate(config)
    assert prepared == [("fp32", "bf16", "outputs/cache")]
    assert "against_fp32" not in result


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_the_layers_prepared_for_this_processor(measure, kernels, weights):
    settings = [f"generation.weights={weights}", f"paths.cache={kernels}"]
    code, _, err, result = measure(*settings, "evaluation.against_fp32=true")
    assert (code, err) == (0, "")
    assert result["against_fp32"]["top1_agreement"] > 0.9
    assert 0 < result["against_fp32"]["kl"] < 0.01


# What is refused


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["evaluation.against_fp32=true"], 2, "evaluation.against_fp32=true: everything is computed in fp32 already"),
        (
            ["evaluation.stride=17"],
            2,
            "evaluation.stride=17: windows hold 16 tokens, so some would be left out\n  use at most 16",
        ),
        (["evaluation.stride=9", "evaluation.context_length=8"], 2, "evaluation.stride=9: windows hold 8 tokens"),
        (["evaluation.context_length=17"], 2, "evaluation.context_length=17: the model's context holds 16"),
        (["evaluation.stride=0"], 2, "evaluation.stride=0: must be at least 1"),
        (["evaluation.mode=document"], 2, "did you mean documents?"),
        (["evaluation=perplexty"], 2, "did you mean evaluation=perplexity?"),
        (
            ["split=test"],
            2,
            "split=test: data=text has nothing in it\n  use split=train or split=val, or cut the data another way",
        ),
        (["split=valid"], 2, "split=valid: expected one of null, train, val, test; did you mean val?"),
        (["which=newest"], 2, "which=newest: expected best, last, or a step's number"),
        (["device.compile=true"], 2, "device.compile=true: is for training"),
        (["device.kernels=false"], 2, "device.kernels=false: is for training"),
        (["data.val_fraction=0.5"], 2, "data.val_fraction=0.5: belongs to a choice of data, and none is made\n  add data=..."),
        (["data=text"], 2, "data.path=null: no file given"),
        (["generation.weights=int4"], 2, "generation.weights=int4: expected one of fp32, bf16, int8"),
        (["generation.weights=int8", "device.type=cuda"], 2, "generation.weights=int8: is for the processor"),
        (["generation.weights=int8", "device.precision=bf16"], 2, "generation.weights=int8: device.precision=bf16 keeps"),
        (["output=run"], 2, "output=run: is a folder"),
        (["output=text.txt/x.json"], 1, "output=text.txt/x.json: cannot be written"),
        (["checkpoint=nowhere"], 2, "checkpoint=nowhere: not the folder of a run"),
        (["which=3"], 1, "step 3"),
    ],
)
def test_what_cannot_be_used_is_named_with_a_remedy(measure, overrides, code, message):
    got, _, err, result = measure(*overrides)
    assert (got, result) == (code, None)
    assert message in err
    assert "Traceback" not in err


def test_a_character_that_the_tokenizer_does_not_know_is_named(small_run, tmp_path, capsys):
    config = small_run()
    config.tokenizer = CharTokenizerConfig()
    train(config, tmp_path / "chars")
    (tmp_path / "notes.txt").write_text("naïve\n" * 30)
    assert evaluate([f"checkpoint={tmp_path / 'chars'}", "data=text", f"data.path={tmp_path / 'notes.txt'}"]) == 1
    assert "ï" in capsys.readouterr().err


def test_a_text_that_has_changed_since_the_training_is_said(measure, tmp_path, caplog):
    with (tmp_path / "text.txt").open("a") as file:
        file.write("More words. " * 50)
    code, *_ = measure()
    assert code == 0
    assert "data=text has changed since the run was trained on it" in caplog.text


def test_an_evaluation_changes_nothing_in_the_run(measure, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    weights = copy.deepcopy(load_run(run).model.state_dict())
    measure("evaluation.mode=strided")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_run(run).model.state_dict().items())


# Generated texts

FEW = ["evaluation=samples", "evaluation.texts=4", "evaluation.prompt_tokens=5", "sampling.max_new_tokens=12"]


def test_generated_texts_are_measured_beside_real_ones(measure, run, tmp_path):
    code, out, err, result = measure(*FEW, "evaluation.judge=run", "evaluation.predictions=texts.jsonl", "sampling.top_k=3")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 3
    assert out.splitlines()[1].startswith("temperature=1.0 top_k=3")
    assert (result["evaluation"], result["checkpoint"], result["split"], result["seed"]) == ("samples", "run", "val", 1)
    assert result["sampling"]["top_k"] == 3
    measures = {"known", "repeated", "distinct_1", "distinct_2", "copied", "perplexity", "judge_bpb", "words"}
    assert result["generated"].keys() == result["real"].keys() == measures
    for score in (*result["generated"].values(), *result["real"].values()):
        assert score.keys() == {"value", "low", "high"}
    texts = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert len(texts) == 4
    text = (tmp_path / "text.txt").read_text()
    assert all(line["prompt"] + line["real"] in text for line in texts)
    assert measure(*FEW, "evaluation.judge=run", "sampling.top_k=3", "evaluation.batch_size=3")[1] == out


def test_what_weights_of_int8_cost_in_these_figures(measure, kernels):
    *_, plain = measure(*FEW)
    *_, rounded = measure(*FEW, f"paths.cache={kernels}", "generation.weights=int8")
    assert rounded["weights"] == "int8"
    assert rounded["real"]["known"] == plain["real"]["known"]
    for measured in ("generated", "real"):
        assert rounded[measured]["perplexity"]["value"] == pytest.approx(plain[measured]["perplexity"]["value"], rel=0.2)


def test_a_sweep_over_temperatures_ends_in_one_table(run, tmp_path, capsys):
    sweep = ["sampling.temperature=0.3,1.2", "sampling.top_k=null,5", "table=table.csv"]
    assert evaluate(["-m", "checkpoint=run", "device.threads=1", *FEW, *sweep]) == 0
    assert capsys.readouterr().out.count("real text") == 4
    table = pandas.read_csv(tmp_path / "table.csv")
    assert table["sampling.temperature"].tolist() == [0.3, 0.3, 1.2, 1.2]
    assert table["sampling.top_k"].isna().tolist() == [True, False] * 2
    assert table["real.perplexity.value"].nunique() == 1
    assert (table["generated.perplexity.value"][:2].max() < table["generated.perplexity.value"][2:]).iloc[0]
    assert evaluate(["checkpoint=run", "device.threads=1", "table=table.csv"]) == 0  # another evaluation, in columns of its own
    table = pandas.read_csv(tmp_path / "table.csv")
    assert table["evaluation"].tolist() == ["samples"] * 4 + ["perplexity"]
    assert table["perplexity"].count() == 1


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["sampling.temperature=0.5"], 2, "sampling.temperature=0.5: is for evaluation=samples, which generates texts"),
        (["sampling=greedy"], 2, "sampling.temperature=0.0: is for evaluation=samples"),
        ([*FEW, "data=storybook"], 2, "data=storybook: texts begin with the run's own text"),
        ([*FEW, "sampling.samples=2"], 2, "sampling.samples=2: evaluation=samples measures texts of one length"),
        ([*FEW, "sampling.stop=[x]"], 2, "sampling.stop=[x]: evaluation=samples measures texts of one length"),
        ([*FEW, "sampling.top_logprobs=1"], 2, "sampling.top_logprobs=1: evaluation=samples"),
        ([*FEW, "sampling.banned=[nonsense]"], 2, "nonsense: must be one token"),
        ([*FEW, "evaluation.texts=1"], 2, "evaluation.texts=1: must be at least 2"),
        ([*FEW, "evaluation.texts=4000"], 2, "evaluation.texts=4000: the "),
        ([*FEW, "evaluation.judge=nowhere"], 2, "evaluation.judge=nowhere: not the folder of a run"),
        ([*FEW, "evaluation.predictions=run"], 2, "evaluation.predictions=run: is a folder"),
        ([*FEW, "table=run"], 2, "table=run: is a folder"),
        ([*FEW, "table=text.txt"], 1, "text.txt: this is no table of evaluations"),
    ],
)
def test_samples_that_cannot_be_made_are_named_with_a_remedy(measure, overrides, code, message):
    got, _, err, result = measure(*overrides)
    assert (got, result) == (code, None)
    assert message in err
    assert "Traceback" not in err


def test_a_table_that_cannot_be_written_is_named(measure):
    code, _, err, _ = measure("table=text.txt/x.csv")
    assert (code, err) == (1, "gpt2x-evaluate: table=text.txt/x.csv: cannot be written (File exists)\n")


@pytest.mark.parametrize(("kind", "named"), [("classifier", "classification"), ("instruct", "rouge")])
def test_only_language_models_make_samples_and_no_classifier_judges_them(fine_tuning, measure, tmp_path, kind, named, capsys):
    train(fine_tuning(kind, **{"trainer.max_steps": 2}), tmp_path / "tuned")
    assert evaluate(["checkpoint=tuned", "device.threads=1", *FEW]) == 2
    err = capsys.readouterr().err
    assert "evaluation=samples: the model of checkpoint=tuned is" in err
    assert f"use evaluation={named}" in err
    code, _, err, _ = measure(*FEW, "evaluation.judge=tuned")
    assert (code, "is a classifier, which predicts no text" in err) == ((2, True) if kind == "classifier" else (0, False))
