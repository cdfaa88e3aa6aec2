"""checkpoint=FOLDER of what other programs wrote: the commands on OpenAI's and Hugging Face's folders."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT
from models import gpt
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from gpt2x.commands import evaluate, export, generate
from gpt2x.interop import openai
from gpt2x.interop.huggingface_export import write_huggingface
from gpt2x.interop.pretrained import read
from gpt2x.training.load import load_run

FIXTURE = Path(__file__).parent / "fixtures" / "openai"  # written by TensorFlow: write_openai_fixture.py
FILES = {"checkpoint", "encoder.json", "hparams.json", "model.ckpt.data-00000-of-00001", "model.ckpt.index", "vocab.bpe"}
PROMPT = "the cat"


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    """The fixture in Hugging Face's form."""
    folder = tmp_path_factory.mktemp("theirs") / "hf"
    run = load_run(FIXTURE)
    write_huggingface(folder, run.model, run.tokenizer)
    return folder


@pytest.fixture(params=["openai", "hf"])
def folder(request, hf) -> Path:
    return {"openai": FIXTURE, "hf": hf}[request.param]


@pytest.fixture
def labelled(tmp_path, hf) -> Path:
    """A classifier that transformers wrote, with the fixture's tokenizer."""
    torch.manual_seed(0)
    shape = dict(vocab_size=260, n_positions=32, n_embd=24, n_layer=1, n_head=4, initializer_range=0.5)
    labels = {"id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}}
    model = GPT2ForSequenceClassification(GPT2Config(**shape, **labels, pad_token_id=259, bos_token_id=259, eos_token_id=259))
    model.save_pretrained(tmp_path / "labelled")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(hf / name, tmp_path / "labelled" / name)
    return tmp_path / "labelled"


def said(capsys, command, *overrides: str) -> str:
    """What a command prints, which goes well."""
    capsys.readouterr()
    assert command([*overrides]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_it_is_loaded_as_a_run_of_no_steps(folder):
    run = load_run(folder)
    assert (run.checkpoint, run.step, run.config.data) == (None, None, None)
    assert run.config.task.data_kind == "text"
    assert not run.model.training
    theirs = read(folder)
    assert all(torch.equal(parameter, theirs.tensors[name]) for name, parameter in run.model.named_parameters())
    reference = np.load(FIXTURE / "logits.npz")
    with torch.no_grad():
        ours = run.model(torch.from_numpy(reference["tokens"])).numpy()
    np.testing.assert_allclose(ours, reference["logits"], atol=2e-5, rtol=0)  # TensorFlow's, whatever it went through


def test_it_generates_what_transformers_generates(folder, hf, capsys):
    text = said(capsys, generate, f"checkpoint={folder}", f"prompt={PROMPT}", "sampling=greedy", "sampling.max_new_tokens=12")
    tokenizer = load_run(folder).tokenizer
    ids = torch.from_numpy(tokenizer.encode(PROMPT).astype(np.int64))[None]
    made = AutoModelForCausalLM.from_pretrained(hf).generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=259)
    assert text.rstrip("\n") == tokenizer.decode(made[0].tolist()).rstrip("\n")


def test_it_talks(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{PROMPT}\n/quit\n".encode())))
    cache = f"paths.cache={tmp_path}"
    typed = said(capsys, generate, f"checkpoint={folder}", "interactive=true", "sampling.max_new_tokens=3", cache)
    assert typed == said(capsys, generate, f"checkpoint={folder}", f"prompt={PROMPT}", "sampling.max_new_tokens=3", cache)


def test_it_is_measured_on_any_text(folder, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text(TEXT[:600])
    data = ["data=text", f"data.path={tmp_path / 'notes.txt'}", "data.val_fraction=0", "split=train"]
    more = ["evaluation.mode=strided", "evaluation.stride=32", f"output={tmp_path / 'p.json'}", "device.threads=1"]
    out = said(capsys, evaluate, f"checkpoint={folder}", *data, *more)
    result = json.loads((tmp_path / "p.json").read_text())
    assert (result["checkpoint"], result["step"]) == (str(folder), None)
    assert result["bytes"] == 599  # nothing predicts the first
    assert "\nstep " not in out
    run = load_run(folder)
    ids = torch.from_numpy(run.tokenizer.encode(TEXT[:600]).astype(np.int64))
    losses = []
    for i in range(0, len(ids) - 1, 32):  # windows end to end, each of which predicts what follows its tokens
        window = ids[i : i + 33]
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(run.model(window[None, :-1])[0], window[1:], reduction="none"))
    assert result["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_what_rounding_its_weights_costs_is_measured_too(tmp_path, capsys, kernels):
    """For which it is loaded a second time."""
    openai.write(tmp_path / "wide", gpt(vocab_size=260, n_embd=32, n_layer=1), load_run(FIXTURE).tokenizer)
    (tmp_path / "notes.txt").write_text(TEXT[:300])
    data = ["data=text", f"data.path={tmp_path / 'notes.txt'}", "data.val_fraction=0", "split=train", "device.threads=1"]
    more = ["generation.weights=int8", "evaluation.against_fp32=true", f"paths.cache={kernels}"]
    assert "fp32" in said(capsys, evaluate, f"checkpoint={tmp_path / 'wide'}", *data, *more)


def test_it_goes_out_in_any_form_again(folder, hf, tmp_path, capsys):
    """From OpenAI's files and back to the same bytes, through Hugging Face's too."""
    said(capsys, export, f"checkpoint={folder}", "format=openai", f"output={tmp_path / 'openai'}")
    assert {path.name for path in (tmp_path / "openai").iterdir()} == FILES
    for name in FILES:
        assert (tmp_path / "openai" / name).read_bytes() == (FIXTURE / name).read_bytes(), name
    said(capsys, export, f"checkpoint={folder}", "format=hf", f"output={tmp_path / 'hf'}")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    assert torch.equal(theirs["transformer.h.1.attn.c_proj.weight"].T, load_run(FIXTURE).model.h[1].attn.c_proj.weight)
    said(capsys, export, f"checkpoint={folder}", "format=gguf", f"output={tmp_path / 'model.gguf'}")
    assert (tmp_path / "model.gguf").stat().st_size > 86_016


def test_from_openai_s_files_through_transformers_and_back_no_byte_changes(tmp_path, capsys):
    """Ours, Hugging Face's form, read and saved by transformers, ours, OpenAI's form: weights and tokenizer."""
    said(capsys, export, f"checkpoint={FIXTURE}", "format=hf", f"output={tmp_path / 'hf'}")
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "theirs")
    AutoTokenizer.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "theirs")
    said(capsys, export, f"checkpoint={tmp_path / 'theirs'}", "format=openai", f"output={tmp_path / 'openai'}")
    for name in FILES:
        assert (tmp_path / "openai" / name).read_bytes() == (FIXTURE / name).read_bytes(), name


def test_a_classifier_of_transformers_classifies(labelled, tmp_path, capsys):
    texts = ["free prize", "see you at home", "the"]
    (tmp_path / "messages.csv").write_text(
        "text,label\n" + "".join(f"{t},{label}\n" for t, label in zip(texts, ("ham", "spam", "ham")))
    )
    run = load_run(labelled)
    theirs = GPT2ForSequenceClassification.from_pretrained(labelled).eval()
    with torch.no_grad():
        ids = [torch.from_numpy(run.tokenizer.encode(text).astype(np.int64))[None] for text in texts]
        expected = torch.cat([theirs(i).logits for i in ids]).softmax(-1).numpy()
    np.testing.assert_allclose(run.task.predict(run.model, texts, 2), expected, atol=1e-5)
    output = tmp_path / "predictions.csv"
    said(capsys, generate, f"checkpoint={labelled}", f"prompt_file={tmp_path / 'messages.csv'}", f"output={output}")
    assert output.read_text().splitlines()[0].startswith("text,label,predicted")
    data = ["data=table", f"data.path={tmp_path / 'messages.csv'}", "data.labels=[ham,spam]", "data.val_fraction=0"]
    more = ["data.test_fraction=0", "split=train", "evaluation=classification", "evaluation.baseline=false"]
    out = said(capsys, evaluate, f"checkpoint={labelled}", *data, *more, "evaluation.bootstrap=0")
    assert "accuracy" in out


@pytest.mark.parametrize(
    ("command", "overrides", "refusal"),
    [
        (evaluate, [], "data=null: must be given: checkpoint={folder} was not trained here"),
        (evaluate, ["evaluation=samples"], "evaluation=samples: texts begin with the run's own text, and checkpoint={folder}"),
        (
            evaluate,
            ["evaluation=rouge", "data=instructions_sample"],
            "evaluation=rouge: the model of checkpoint={folder} is a la",
        ),
        (generate, ["which=last"], "which=last: checkpoint={folder} is a model of {whose}, of which there is one"),
        (generate, ["instruction=Go."], "instruction=Go.: is for a model tuned to instructions"),
        (export, ["format=peft", "output=x"], "format=peft: checkpoint={folder} has no adapter"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(folder, hf, capsys, command, overrides, refusal):
    assert command([f"checkpoint={folder}", *overrides]) == 2
    error = capsys.readouterr().err
    assert refusal.format(folder=folder, whose="Hugging Face's" if folder == hf else "OpenAI's") in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", [generate, evaluate, export])
def test_what_is_no_model_is_refused_with_the_three_kinds_that_are(tmp_path, capsys, command):
    more = ["format=openai", "output=x"] if command is export else []
    assert command([f"checkpoint={tmp_path}", *more]) == 2
    problem = "not the folder of a run (it has no config.yaml), nor of a model of OpenAI's (it has no hparams.json), nor of a "
    assert f"checkpoint={tmp_path}: {problem}model of Hugging Face's (it has no config.json)" in capsys.readouterr().err


def test_what_is_wrong_with_a_folder_is_told_before_it_is_loaded(tmp_path, capsys):
    torn = shutil.copytree(FIXTURE, tmp_path / "torn")
    (torn / "hparams.json").write_text('{"n_vocab": 260}')
    assert generate([f"checkpoint={torn}"]) == 2
    assert f"checkpoint={torn}: {torn / 'hparams.json'}: expected a JSON object with n_vocab, n_ctx" in capsys.readouterr().err


def test_it_judges_the_texts_of_a_run(small_run, tmp_path, monkeypatch, capsys):
    from gpt2x.training.run import train

    monkeypatch.chdir(tmp_path)
    train(small_run(**{"trainer.max_steps": 2}), tmp_path / "run")
    settings = ["evaluation=samples", "evaluation.texts=2", "evaluation.prompt_tokens=4", "sampling.max_new_tokens=8"]
    assert "judge" in said(capsys, evaluate, "checkpoint=run", *settings, f"evaluation.judge={FIXTURE}", "device.threads=1")
    assert evaluate(["checkpoint=run", *settings, f"evaluation.judge={tmp_path}"]) == 2
    assert f"evaluation.judge={tmp_path}: not the folder of a run" in capsys.readouterr().err
