"""gpt2x-export on real runs, from the command line to a file that other programs read."""

from __future__ import annotations

import pytest
import torch
from models import hugging_face

from gpt2x.commands import export
from gpt2x.training.load import load_run
from gpt2x.training.run import train

MESSAGES = "".join(f"{word} number {i},{label}\n" for i in range(15) for word, label in (("prize", "spam"), ("hello", "ham")))


@pytest.fixture
def base(small_run, tmp_path, monkeypatch):
    """A run of a language model, in the current folder."""
    monkeypatch.chdir(tmp_path)
    train(small_run(**{"trainer.max_steps": 4}), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapted(small_run, base, tmp_path):
    """Make a run with finetune=lora on top of it: a language model, or a classifier."""

    def make(**changes):
        lora = {"finetune._target_": "gpt2x.training.finetune.lora", "finetune.rank": 2, "finetune.dora": True}
        init = {"init._target_": "gpt2x.training.init.from_run", "init.path": str(base)}
        train(small_run(**{"trainer.max_steps": 4, **lora, **init, **changes}), tmp_path / "adapted")
        return tmp_path / "adapted"

    return make


def classifier(tmp_path) -> dict:
    (tmp_path / "messages.csv").write_text(f"text,label\n{MESSAGES}")
    data = {"data._target_": "gpt2x.data.table.TableCorpus", "data.path": str(tmp_path / "messages.csv")}
    return data | {"task._target_": "gpt2x.task.classifier.Classification"}


def test_gguf_is_read_back_with_the_merged_weights(adapted, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    run = adapted()
    assert export([f"checkpoint={run}", "format=gguf", "output=model.gguf"]) == 0
    assert "\nwrote model.gguf (" in capsys.readouterr().out
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader("model.gguf").tensors}
    merged = load_run(run).model.h[0].attn.c_attn.weight
    assert torch.equal(torch.tensor(tensors["blk.0.attn_qkv.weight"].data), merged)
    assert not torch.equal(merged, load_run(run, merged=False).model.h[0].attn.c_attn.weight)


def test_an_adapter_is_read_by_peft_and_computes_the_same(adapted, base):
    peft = pytest.importorskip("peft")
    run = adapted()
    assert export([f"checkpoint={run}", "format=peft", "output=adapter", "base=some/base"]) == 0
    theirs = peft.PeftModel.from_pretrained(hugging_face(load_run(base).model), "adapter").eval()
    assert theirs.peft_config["default"].base_model_name_or_path == "some/base"
    ours = load_run(run).model
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-5, rtol=0)
        assert (ours(tokens) - load_run(base).model(tokens)).abs().max() > 1e-4  # it has learned something


@pytest.mark.parametrize(
    ("make", "overrides", "said"),
    [
        ({}, ["format=gguf", "output=x.gguf"], "llama.cpp's GPT-2 has no classifier's head"),
        ({"task.pooling": "mean"}, ["format=peft", "output=x"], "has task.pooling=mean"),
    ],
)
def test_what_the_other_programs_cannot_compute_is_refused(adapted, tmp_path, capsys, make, overrides, said):
    run = adapted(**classifier(tmp_path), **make)
    assert export([f"checkpoint={run}", *overrides]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / overrides[1].partition("=")[2]).exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["format=peft", "output=x"], "has no adapter\n  train one with finetune=lora"),
        (["format=peft", "output=x", "weights=f16"], "weights=f16: is for format=gguf"),
        (["format=gguf", "output=x", "base=b"], "base=b: is for format=peft"),
        (["format=gguf"], "output must be given"),
        (["format=onnx", "output=x"], "format=onnx: expected one of gguf, peft"),
    ],
)
def test_what_cannot_be_done_is_said(base, capsys, overrides, said):
    assert export([f"checkpoint={base}", *overrides]) == 2
    assert said in capsys.readouterr().err
