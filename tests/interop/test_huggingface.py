"""Hugging Face's folders in and out: transformers itself reads ours and writes what we read, and both compute the same."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from models import SHAPE, far_from_linear, gpt, hugging_face, restless, some_tokens, transposed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    pipeline,
)

from gpt2x.errors import UserError
from gpt2x.interop import huggingface
from gpt2x.interop.huggingface import describe, find, read
from gpt2x.interop.huggingface_export import write_huggingface
from gpt2x.interop.huggingface_tokenizer import tokenizer_files
from gpt2x.interop.pretrained import PretrainedError
from gpt2x.model.classifier import Classifier
from gpt2x.model.gpt import GPT
from gpt2x.model.lora import add_lora
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer

CHARACTERS = CharTokenizer("".join(map(chr, range(ord("A"), ord("A") + 60))))  # 61 tokens, as the models have
FLOATS = {torch.float64: 1e-10, torch.float32: 1e-3}  # logits of up to a hundred: 1e-3 is a few of float32's roundings
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def model(dtype: torch.dtype = torch.float32, **changes) -> GPT:
    return far_from_linear(gpt(**changes)).to(dtype).eval()


def classifier(dtype: torch.dtype = torch.float32, *, n_classes: int = 3, pooling: str = "last_token") -> Classifier:
    generator = torch.Generator().manual_seed(5)
    made = Classifier(model(), n_classes=n_classes, pooling=pooling, generator=generator)
    with torch.no_grad():
        made.score.weight.mul_(10)
    return made.to(dtype).eval()


def folder_of(path: Path, reference: nn.Module, max_shard_size: str = "1GB", **changes) -> Path:
    """A folder that transformers wrote, with a tokenizer, and with `changes` in its config.json."""
    reference.save_pretrained(path, max_shard_size=max_shard_size)
    for name, text in tokenizer_files(CHARACTERS, context_length=8).items():
        (path / name).write_text(text)
    config = json.loads((path / "config.json").read_text()) | {"eos_token_id": CHARACTERS.end_of_text} | changes
    (path / "config.json").write_text(json.dumps(config))
    return path


def loaded(path: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Our model with all that is read of a folder."""
    found = read(path)
    gpt = GPT(vocab_size=found.about.vocab_size, **found.about.model)
    model = gpt if found.about.labels is None else Classifier(gpt, n_classes=len(found.about.labels), pooling="last_token")
    named = dict(found.tensors)
    if model is not gpt:
        named = {name if name == "score.weight" else f"gpt.{name}": tensor for name, tensor in named.items()}
        named["score.bias"] = torch.zeros(len(found.about.labels))
    model.load_state_dict(named, strict=True)
    return model.to(dtype).eval()


@torch.no_grad()
def assert_same(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    assert ours.std() > 0.5
    torch.testing.assert_close(theirs, ours, atol=FLOATS[ours.dtype], rtol=0)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(PretrainedError) as error:
        read(path)
    assert all(word in str(error.value) for word in words), str(error.value)


# -- out ---------------------------------------------------------------------------------------------------------


@floats
@pytest.mark.parametrize("changes", [{}, {"tied_head": False}, {"vocab_size": 70}], ids=["tied", "untied", "spare rows"])
def test_transformers_computes_our_model(tmp_path, dtype, changes):
    ours = model(dtype, **changes)
    write_huggingface(tmp_path / "out", ours, CHARACTERS)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert theirs.dtype == dtype
    assert theirs.config.vocab_size == ours.vocab_size
    assert_same(theirs(some_tokens()).logits, ours(some_tokens()))


def test_the_greedy_text_is_ours(tmp_path):
    ours, prompt = restless(gpt()), "ABCA"
    write_huggingface(tmp_path / "out", ours, CHARACTERS)
    made = pipeline("text-generation", model=str(tmp_path / "out"))(prompt, max_new_tokens=16, do_sample=False)
    tokens = CHARACTERS.encode(prompt).tolist()
    with torch.no_grad():
        for _ in range(16):
            tokens.append(ours(torch.tensor([tokens]))[0, -1].argmax().item())
    assert CHARACTERS.end_of_text not in tokens
    assert len(set(tokens)) > 5
    assert made == [{"generated_text": CHARACTERS.decode(tokens)}]


@floats
def test_transformers_computes_our_classifier(tmp_path, dtype):
    """Its head has no bias, and rows of different lengths are padded."""
    ours = classifier(dtype)
    write_huggingface(tmp_path / "out", ours, CHARACTERS, labels=["ham", "spam", "eggs"])
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokens, lengths = some_tokens().clamp(max=59), torch.tensor([9, 20, 24])
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = CHARACTERS.end_of_text
    with torch.no_grad():
        logits = ours(tokens, lengths)
        assert_same(theirs(tokens).logits, logits)
        assert (
            logits - nn.functional.linear(ours.gpt.hidden(tokens, at_B=lengths - 1)[:, 0], ours.score.weight)
        ).abs().max() > 0.01
    classify = pipeline("text-classification", model=str(tmp_path / "out"), truncation=True)
    texts = ["ABC", "ABCDEFGH", "B" * 40]
    answers = classify(texts, batch_size=3, top_k=None)
    for text, answer in zip(texts, answers, strict=True):
        ids = torch.from_numpy(CHARACTERS.encode(text[:24]))[None].long()
        with torch.no_grad():
            wanted = ours(ids, torch.tensor([ids.shape[1]]))[0].softmax(-1)
        for label, probability in zip(("ham", "spam", "eggs"), wanted, strict=True):
            assert {a["label"]: a["score"] for a in answer}[label] == pytest.approx(probability.item(), abs=1e-4)


def test_a_bias_that_no_shift_equals_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no shift of its 32 inputs equals the head's bias for all 40 classes"):
        write_huggingface(tmp_path / "out", classifier(n_classes=40), CHARACTERS, labels=list("abcdefghij") * 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"tied_head": False}, {"n_embd": 1, "n_head": 1, "n_layer": 1}], ids=["tied", "untied", "one wide"]
)
def test_the_way_there_and_back_changes_no_bit(tmp_path, changes, dtype):
    """Ours, transformers, saved by it, ours again."""
    ours = model(dtype, **changes)
    write_huggingface(tmp_path / "out", ours, CHARACTERS)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "back")
    for name, text in tokenizer_files(CHARACTERS, context_length=8).items():
        (tmp_path / "back" / name).write_text(text)
    back = read(tmp_path / "back").tensors
    assert back.keys() == dict(ours.named_parameters()).keys()
    for name, mine in ours.named_parameters():
        assert mine.dtype == back[name].dtype
        assert mine.flatten().view(torch.uint8).equal(back[name].flatten().view(torch.uint8)), name


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_other_positions_are_refused(tmp_path, position):
    with pytest.raises(UserError, match=f"position={position}, and GPT-2 in transformers learned positions alone"):
        write_huggingface(tmp_path / "out", gpt(position=position), CHARACTERS)
    assert list(tmp_path.iterdir()) == []


def test_what_else_cannot_be_represented_is_refused(tmp_path):
    with pytest.raises(UserError, match="model has 60 tokens and the tokenizer 61"):
        write_huggingface(tmp_path / "out", gpt(vocab_size=60), CHARACTERS)
    with pytest.raises(UserError, match=r"task.pooling=mean, and transformers knows last_token alone"):
        write_huggingface(tmp_path / "out", classifier(pooling="mean"), CHARACTERS, labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="has 3 classes, and the labels are"):
        write_huggingface(tmp_path / "out", classifier(), CHARACTERS, labels=["a", "b"])
    adapted = gpt()
    add_lora(adapted, rank=2, alpha=2, targets=["c_fc"])
    with pytest.raises(ValueError, match="merge it first"):
        write_huggingface(tmp_path / "out", adapted, CHARACTERS)
    assert list(tmp_path.iterdir()) == []


def test_the_files_are_those_of_a_shared_folder(tmp_path):
    write_huggingface(tmp_path / "deep" / "out", gpt(), CHARACTERS, card="# A card\n")
    (tmp_path / "plain").write_text("")
    plain = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deep" / "out").iterdir()}
    names = [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert modes == dict.fromkeys(names, plain)
    assert (tmp_path / "deep" / "out" / "README.md").read_text() == "# A card\n"
    with safe_open(tmp_path / "deep" / "out" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_an_export_replaces_an_export_and_nothing_else(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    write_huggingface(out, gpt(), CHARACTERS, card="old")  # an empty folder is as good as none
    write_huggingface(out, gpt(seed=9), CHARACTERS)
    assert not (out / "README.md").exists()
    assert torch.equal(loaded(out).wte.weight, gpt(seed=9).wte.weight)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out holds notes.txt, which is not of an export"):
        write_huggingface(out, gpt(), CHARACTERS)
    foreign = folder_of(tmp_path / "foreign", hugging_face(gpt(seed=3)))
    with pytest.raises(UserError, match="foreign holds a model that is not of an export"):
        write_huggingface(foreign, gpt(), CHARACTERS)
    assert torch.equal(loaded(foreign).wte.weight, gpt(seed=3).wte.weight)
    with pytest.raises(UserError, match="is a file, and a folder is wanted"):
        write_huggingface(out / "notes.txt", gpt(), CHARACTERS)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=r"^\. is the folder that you are in, and would be replaced"):
        write_huggingface(".", gpt(), CHARACTERS)


def test_a_failure_leaves_the_old_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_huggingface(out, gpt(), CHARACTERS)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("gpt2x.interop.huggingface_export._save", full)
    with pytest.raises(OSError, match="No space"):
        write_huggingface(out, gpt(seed=9), CHARACTERS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_interruption_between_the_two_renames_leaves_the_old_folder(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", os.replace
    write_huggingface(out, gpt(), CHARACTERS)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupted(source, target):
        if Path(target) == out and not Path(source).name.endswith(".old"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_huggingface(out, gpt(seed=9), CHARACTERS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# -- in: the weights ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    return hugging_face(model())


@floats
@pytest.mark.parametrize("activation", huggingface._ALLOWED["activation_function"])
def test_we_compute_theirs(tmp_path, theirs, dtype, activation):
    path = folder_of(tmp_path, theirs, activation_function=activation)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    assert_same(reference(some_tokens()).logits, loaded(path, dtype)(some_tokens()))


def assert_weights(path: Path, wanted: GPT2LMHeadModel, tolerance: float = 0) -> None:
    ours = dict(loaded(path).named_parameters())
    state = {name.removeprefix("transformer."): p for name, p in wanted.named_parameters()}
    assert state.keys() == ours.keys()
    for name, parameter in state.items():
        torch.testing.assert_close(transposed(name, parameter), ours[name], atol=tolerance, rtol=tolerance)


def test_an_untied_head_is_read(tmp_path):
    reference = hugging_face(model(), tie_word_embeddings=False)
    nn.init.normal_(reference.lm_head.weight, std=0.5)
    path = folder_of(tmp_path, reference)
    assert describe(path).model["tied_head"] is False
    assert_weights(path, reference)
    assert_same(reference(some_tokens()).logits, loaded(path)(some_tokens()))


def test_a_body_without_a_head_is_read(tmp_path, theirs):
    """GPT2Model saves its tensors without a prefix."""
    path = folder_of(tmp_path, theirs.transformer)
    assert "wte.weight" in load_file(path / "model.safetensors")
    assert json.loads((path / "config.json").read_text())["architectures"] == ["GPT2Model"]
    assert_weights(path, theirs)


def test_files_as_the_hub_has_them_are_read(tmp_path, theirs):
    """Without a prefix, with the causal masks of old versions, a tied head saved all the same, and settings of old."""
    old = {"n_ctx": 24, "task_specific_params": {"text-generation": {"do_sample": True}}, "torch_dtype": "float32"}
    path = folder_of(tmp_path, theirs, **old, predict_special_tokens=True, output_past=True, pruned_heads={}, num_labels=1)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path / "model.safetensors").items()}
    for i in range(SHAPE["n_layer"]):
        tensors[f"h.{i}.attn.bias"] = torch.ones(24, 24).tril()[None, None]
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    assert_weights(path, theirs)
    tensors["lm_head.weight"][5, 7] += 1e-6
    save_file(tensors, path / "model.safetensors")
    refused(path, "lm_head.weight is not the token embedding, though tie_word_embeddings is true")


def test_shards_are_read(tmp_path, theirs):
    path = folder_of(tmp_path, theirs, max_shard_size="40KB")
    assert len(list(path.glob("model-*.safetensors"))) > 2
    assert_weights(path, theirs)
    last = max(path.glob("model-*.safetensors"))
    last.rename(path / "elsewhere")
    refused(path, f"{last.name}: no such file, and model.safetensors.index.json speaks of it")
    save_file({"x": torch.zeros(1)}, last)
    refused(path, last.name, "lacks transformer.", "index.json says")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["transformer.wte.weight"] = "../secret.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(path, "weight_map does not say in which file of this folder")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_weights_are_read(tmp_path, theirs, zipped):
    path = folder_of(tmp_path, theirs)
    (path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_weights(path, theirs)
    whole = (path / "pytorch_model.bin").read_bytes()
    for size in (0, 4, 300, len(whole) // 2, len(whole) - 3):
        (path / "pytorch_model.bin").write_bytes(whole[:size])
        refused(path, "pytorch_model.bin", "torn")


def test_pickled_shards_are_read(tmp_path, theirs):
    path = folder_of(tmp_path, theirs)
    (path / "model.safetensors").unlink()
    state, places = theirs.state_dict(), {}
    for i, names in enumerate((list(state)[:10], list(state)[10:])):
        file = f"pytorch_model-{i + 1:05}-of-00002.bin"
        torch.save({name: state[name] for name in names}, path / file)
        places |= dict.fromkeys(names, file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_weights(path, theirs)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_nothing_but_tensors_is_unpickled(tmp_path, theirs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = folder_of(tmp_path, theirs)
    (path / "model.safetensors").unlink()
    torch.save({"wte.weight": Harmful()}, path / "pytorch_model.bin")
    refused(path, "pytorch_model.bin", "could run code")
    assert not Path("harmed").exists()
    torch.save([theirs.state_dict()], path / "pytorch_model.bin")
    refused(path, "not a state dict")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_converted(tmp_path, theirs, dtype):
    path = folder_of(tmp_path, hugging_face(model()).to(dtype))
    wanted = hugging_face(model()).to(dtype).float()
    assert_weights(path, wanted)


def changed(path: Path, **tensors: torch.Tensor | None) -> Path:
    """Tensors put into a folder's file, or (None) taken out."""
    named = load_file(path / "model.safetensors") | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in named.items() if tensor is not None}, path / "model.safetensors")
    return path


def test_faulty_weights_are_refused_by_name(tmp_path, theirs):
    path = folder_of(tmp_path, theirs)
    changed(path, transformer__h__1__mlp__c_fc__weight=None)
    refused(path, "lacks h.1.mlp.c_fc.weight")
    changed(path, transformer__h__1__mlp__c_fc__weight=torch.zeros(128, 32))
    refused(path, "h.1.mlp.c_fc.weight is F32 (128, 32)", "needs floating-point numbers (32, 128)")
    changed(path, transformer__h__1__mlp__c_fc__weight=torch.zeros(32, 128, dtype=torch.int8))
    refused(path, "h.1.mlp.c_fc.weight is I8")
    changed(path, transformer__h__1__mlp__c_fc__weight=torch.zeros(32, 128))
    read(path)
    changed(path, h__1__mlp__c_fc__weight=torch.zeros(32, 128))
    refused(path, "holds h.1.mlp.c_fc.weight twice")
    changed(path, h__1__mlp__c_fc__weight=None, v_head__summary__weight=torch.zeros(1, 32))
    refused(path, "holds what the model of config.json has no place for: v_head.summary.weight")
    changed(path, v_head__summary__weight=None, transformer__h__3__ln_1__weight=torch.zeros(32))
    refused(path, "no place for: h.3.ln_1.weight")


def test_torn_and_missing_files_are_refused_by_name(tmp_path, theirs):
    path = folder_of(tmp_path, theirs)
    whole = (path / "model.safetensors").read_bytes()
    for size in (0, 4, 300, len(whole) // 2, len(whole) - 1):
        (path / "model.safetensors").write_bytes(whole[:size])
        refused(path, "model.safetensors: torn")
    (path / "model.safetensors").write_bytes(b"<html>not found</html>" * 40)
    refused(path, "model.safetensors: torn, or no safetensors file")
    (path / "model.safetensors").unlink()
    refused(path, "has no weights: none of model.safetensors,")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config[:-20])
    refused(path, "config.json: no JSON, or torn")
    (path / "config.json").write_text("[]")
    refused(path, "config.json: expected a JSON object")
    (path / "config.json").unlink()
    refused(path, "config.json: cannot be read (No such file or directory)")


def test_a_description_needs_no_weights_and_no_torch(tmp_path, theirs):
    path = folder_of(tmp_path, theirs)
    (path / "model.safetensors").unlink()
    about = describe(path)
    assert about.model == {"n_layer": 3, "n_head": 4, "n_embd": 32, "context_length": 24, "dropout": 0.0, "tied_head": True}
    assert (about.path, about.format, about.vocab_size, about.tokenizer, about.labels) == (path, "hf", 61, "char", None)
    code = (
        f"import sys; from pathlib import Path; from gpt2x.interop.huggingface import describe; describe(Path({str(path)!r}))"
    )
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True, timeout=60)


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path, theirs):
    path = folder_of(tmp_path, theirs)
    tensors = read(path).tensors
    assert len(tensors) == len(list(model().parameters()))
    before = tensors["wte.weight"]
    assert before is not tensors["wte.weight"]
    assert torch.equal(before, tensors["wte.weight"])
    with pytest.raises(KeyError):
        tensors["lm_head.weight"]


# -- in: classifiers ---------------------------------------------------------------------------------------------


def hugging_face_classifier(**changes) -> GPT2ForSequenceClassification:
    body = hugging_face(model(), num_labels=3, pad_token_id=60, **changes)
    torch.manual_seed(3)
    reference = GPT2ForSequenceClassification(body.config)
    reference.transformer.load_state_dict(body.transformer.state_dict())
    return reference.eval()


@floats
def test_a_classifier_is_read(tmp_path, dtype):
    path = folder_of(tmp_path, hugging_face_classifier(id2label={0: "ham", 1: "spam", 2: "eggs"}))
    about = describe(path)
    assert about.labels == ("ham", "spam", "eggs")
    assert about.model["tied_head"] is True
    ours, tokens = loaded(path, dtype), some_tokens().clamp(max=59)
    tokens[0, 9:] = 60
    reference = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(
            reference(tokens).logits, ours(tokens, torch.tensor([9, 24, 24])), atol=FLOATS[dtype], rtol=0
        )


def test_classes_without_names_have_transformers_own(tmp_path):
    path = folder_of(tmp_path, hugging_face_classifier())
    assert describe(path).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"problem_type": "regression"}, 'problem_type="regression": expected null or "single_label_classification"'),
        ({"problem_type": "multi_label_classification"}, 'problem_type="multi_label_classification": expected'),
        ({"id2label": {"0": "score"}}, 'id2label={"0": "score"}: expected the names of two or more classes'),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label="),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label="),
        ({"id2label": {"0": "a", "1": "b"}}, "score.weight is F32 (3, 32), and the model of config.json needs"),
        ({"pad_token_id": 7}, "pad_token_id=7: expected null or 60, the tokenizer's <|endoftext|>"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_other_classifiers_are_refused(tmp_path, changes, said):
    refused(folder_of(tmp_path, hugging_face_classifier(), **changes), said)


# -- in: config.json ---------------------------------------------------------------------------------------------

# Every setting of transformers' config, with another value than the model's.
OTHERS = {
    "transformers_version": "4.0.0",
    "architectures": ["GPT2DoubleHeadsModel"],
    "output_hidden_states": True,
    "return_dict": False,
    "dtype": "float16",
    "chunk_size_feed_forward": 2,
    "is_encoder_decoder": True,
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
    "problem_type": "regression",
    "vocab_size": 62,
    "n_positions": 25,
    "n_embd": 36,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 64,
    "activation_function": "relu",
    "resid_pdrop": 0.2,
    "embd_pdrop": 0.2,
    "attn_pdrop": 0.2,
    "layer_norm_epsilon": 1e-6,
    "initializer_range": 0.5,
    "summary_type": "mean",
    "summary_use_proj": False,
    "summary_activation": "tanh",
    "summary_proj_to_labels": False,
    "summary_first_dropout": 0.5,
    "scale_attn_weights": False,
    "use_cache": False,
    "bos_token_id": 3,
    "eos_token_id": 3,
    "pad_token_id": 3,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "add_cross_attention": True,
    "tie_word_embeddings": False,
    "model_type": "gpt_neo",
    "output_attentions": True,
    "_name_or_path": "somebody/else",
}


def test_every_setting_of_theirs_is_known():
    fields = {field.name for field in dataclasses.fields(GPT2Config)} | GPT2Config().to_dict().keys()
    assert fields == OTHERS.keys()
    assert fields <= huggingface._DEFAULTS.keys() | huggingface._ALLOWED.keys() | huggingface._WITHOUT_EFFECT


@pytest.mark.parametrize("name", OTHERS)
def test_another_setting_is_refused_by_name_or_described_or_changes_nothing(tmp_path, theirs, name):
    path = folder_of(tmp_path, theirs)
    before = describe(path)
    path = folder_of(tmp_path, theirs, **{name: OTHERS[name]})
    try:
        after = describe(path)
    except PretrainedError as error:
        assert name in str(error)
        assert name not in huggingface._WITHOUT_EFFECT
        return
    if after != before:
        assert name in huggingface._DEFAULTS
        return
    assert name != "eos_token_id"  # which no logit shows
    reference = GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32, return_dict=True)
    made = reference(some_tokens()).logits
    torch.testing.assert_close(made, theirs(some_tokens()).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt_neo"}, 'model_type="gpt_neo": expected "gpt2"'),
        ({"activation_function": "gelu"}, 'activation_function="gelu": expected "gelu_new" or "gelu_pytorch_tanh"'),
        ({"n_inner": 64}, "n_inner=64: expected null or 128, four times n_embd"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06: expected 1e-05"),
        ({"scale_attn_weights": False}, "scale_attn_weights=false: expected true"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true: expected false"),
        ({"add_cross_attention": True}, "add_cross_attention=true: expected false"),
        ({"attn_pdrop": 0.1}, "embd_pdrop=0.0 attn_pdrop=0.1 resid_pdrop=0.0: our model has one dropout for all three"),
        ({"attn_pdrop": 1}, "attn_pdrop=1: expected a number of at least 0 and below 1"),
        (
            {"architectures": ["GPT2DoubleHeadsModel"]},
            'architectures=["GPT2DoubleHeadsModel"]: expected one of GPT2LMHeadModel',
        ),
        ({"n_head": 5}, "n_head=5: expected a whole number that divides n_embd=32"),
        ({"n_layer": 0}, "n_layer=0: expected a whole number of at least 1"),
        ({"n_layer": True}, "n_layer=true: expected a whole number"),
        ({"vocab_size": "61"}, 'vocab_size="61": expected a whole number'),
        ({"vocab_size": 60}, "its tokenizer has 61 tokens, and the model of config.json 60"),
        ({"eos_token_id": 3}, "eos_token_id=3: expected null or 60, the tokenizer's <|endoftext|>"),
        ({"eos_token_id": [3, 4]}, "eos_token_id=[3, 4]: expected null or 60"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings=null: expected true or false"),
        ({"rotary_dim": 8}, "rotary_dim=8: unknown here, and it may change what the model computes"),
        ({"quantization_config": {"bits": 4}}, 'quantization_config={"bits": 4}: unknown here'),
        ({"pruned_heads": {"0": [1]}}, 'pruned_heads={"0": [1]}: unknown here'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_our_model_cannot_be_is_refused_by_name(tmp_path, theirs, changes, said):
    path = folder_of(tmp_path, theirs, **changes)
    with pytest.raises(PretrainedError) as error:
        describe(path)
    assert f"config.json: {said}" in str(error.value) or f"{path}: {said}" in str(error.value), str(error.value)


def test_other_names_and_left_out_settings_are_understood(tmp_path, theirs):
    path = folder_of(tmp_path, theirs)
    config = json.loads((path / "config.json").read_text())
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    config = {names.get(name, name): value for name, value in config.items()} | {"rotary_dim": None, "eos_token_id": 50256}
    (path / "config.json").write_text(json.dumps(config))
    assert_weights(path, theirs)
    (path / "config.json").write_text('{"model_type": "gpt2"}')
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    about = describe(path)
    assert about.model == dict(n_layer=12, n_head=12, n_embd=768, context_length=1024, dropout=0.1, tied_head=True)
    assert (about.vocab_size, about.tokenizer) == (50257, "gpt2")


# -- find --------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of huggingface.co as huggingface_hub asks for: which files there are, and the files."""

    folder: Path
    asked: list[str]

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body: bool = True):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        names = sorted(file.name for file in self.folder.iterdir())
        if path.startswith("/api/models/me/mine/revision/"):
            return self.answer({"id": "me/mine", "sha": "c" * 40, "siblings": [{"rfilename": name} for name in names]}, body)
        if path.startswith("/api/models/me/mine/tree/"):
            size = {name: (self.folder / name).stat().st_size for name in names}
            return self.answer([{"type": "file", "path": name, "size": size[name], "oid": name} for name in names], body)
        file = self.folder / path.rpartition("/")[2]
        if path.startswith("/me/mine/resolve/") and file.is_file():
            return self.answer(file.read_bytes(), body)
        self.send_error(404)

    def answer(self, data: bytes | dict | list, body: bool):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(200)
        for name, value in {"Content-Length": len(data), "ETag": f'"{len(data)}"', "X-Repo-Commit": "c" * 40}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    asked: list[str] = []
    handler = type("TestHub", (Hub,), {"folder": tmp_path / "hub", "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    template, endpoint = constants.HUGGINGFACE_CO_URL_TEMPLATE, f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(constants.ENDPOINT, endpoint))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "hub").mkdir()
    yield asked
    server.shutdown()
    server.server_close()


def test_a_folder_is_itself(tmp_path):
    assert find(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickled"])
def test_a_model_of_the_hub_is_fetched_once(tmp_path, theirs, hub, monkeypatch, pickled):
    folder_of(tmp_path / "hub", theirs)
    torch.save(theirs.state_dict(), tmp_path / "hub" / "pytorch_model.bin")
    (tmp_path / "hub" / "tf_model.h5").write_text("not wanted")
    if pickled:
        (tmp_path / "hub" / "model.safetensors").unlink()
    path = find("me/mine", tmp_path / "cache")
    assert_weights(path, theirs)
    weights = "pytorch_model.bin" if pickled else "model.safetensors"
    assert {file.name for file in path.iterdir()} == {"config.json", "tokenizer.json", "tokenizer_config.json", weights}
    hub.clear()
    assert find("me/mine", tmp_path / "cache") == path
    assert not hub
    assert find("me/mine@main", tmp_path / "cache") == path
    assert hub
    assert not any("resolve" in asked for asked in hub)
    huggingface._fetched.cache_clear()  # another command
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert find("me/mine", tmp_path / "cache") == path  # without a network, too


def test_a_description_needs_the_small_files_alone(tmp_path, theirs, hub):
    folder_of(tmp_path / "hub", theirs)
    path = find("me/mine", tmp_path / "cache", weights=False)
    assert describe(path).model == describe(tmp_path / "hub").model
    assert not any("model.safetensors" in asked for asked in hub)
    assert_weights(find("me/mine", tmp_path / "cache"), theirs)


def test_what_cannot_be_fetched_is_said(tmp_path, hub, monkeypatch):
    with pytest.raises(PretrainedError, match=r"me/other: no such folder, and it could not be had .*404"):
        find("me/other", tmp_path / "cache")
    with pytest.raises(PretrainedError, match=r"a b/c: no such folder, and not the name of a model"):
        find("a b/c", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PretrainedError, match=r"me/mine: no such folder, and it could not be had from huggingface.co"):
        find("me/mine", tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PretrainedError, match=r"needs the package huggingface_hub\n  pip install 'gpt2x\[hub\]'"):
        find("me/mine", tmp_path / "cache")


# -- full sizes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_layer", "n_head", "n_embd"), [("tiny", 3, 4, 32), ("124M", 12, 12, 768), ("355M", 24, 16, 1024)]
)
@torch.no_grad()
def test_parity_at_full_size(tmp_path, name, n_layer, n_head, n_embd, capsys):
    """In float32, random weights larger than GPT-2's initial ones, so that gelu and softmax leave their linear ranges."""
    shape = dict(vocab_size=50257, n_layer=n_layer, n_head=n_head, n_embd=n_embd, context_length=1024)
    generator = torch.Generator().manual_seed(1)
    ours = GPT(**shape, generator=generator).eval()
    for parameter in ours.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.1
        parameter.mul_(10 if name == "tiny" else 3) if parameter.dim() == 2 else parameter.add_(noise)
    write_huggingface(tmp_path / "out", ours, GPT2Tokenizer())
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.randint(50257, (2, 200), generator=generator)
    mine, theirs = ours(tokens), reference(tokens).logits
    AutoModelForCausalLM.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "back")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "out" / file).rename(tmp_path / "back" / file)
    back = read(tmp_path / "back")
    same_bits = all(torch.equal(parameter, back.tensors[key]) for key, parameter in ours.named_parameters())
    difference, equal = (mine - theirs).abs().max().item(), (mine.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    with capsys.disabled():
        print(f"\n| {name} | {ours.n_parameters():,} | {mine.std():.1f} | {difference:.1e} | {equal:.2%} | {same_bits} |")
    assert difference < 1e-4
    assert equal == 1
    assert same_bits
