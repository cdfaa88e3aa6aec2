"""OpenAI's folders: TensorFlow's own logits, the same bytes out again, and what is refused by name."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from file_server import served
from models import far_from_linear, gpt

from gpt2x.errors import UserError
from gpt2x.interop import openai
from gpt2x.interop.pretrained import PretrainedError, describe, kind_of, parameter_shapes, read
from gpt2x.interop.tensorflow import Bundle, write_bundle
from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.bpe import BPETokenizer
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer
from gpt2x.training.init import fill

FIXTURE = Path(__file__).parent / "fixtures" / "openai"  # written by TensorFlow: write_openai_fixture.py
FILES = {"checkpoint", "encoder.json", "hparams.json", "model.ckpt.data-00000-of-00001", "model.ckpt.index", "vocab.bpe"}
HPARAMS = json.loads((FIXTURE / "hparams.json").read_text())


def model_of(path: Path) -> GPT:
    theirs = read(path)
    model = GPT(vocab_size=theirs.about.vocab_size, **theirs.about.model)
    fill(model, theirs.tensors)
    return model.eval()


@pytest.fixture
def copy(tmp_path) -> Path:
    """The fixture's folder, to be changed."""
    return shutil.copytree(FIXTURE, tmp_path / "copy")


def other_hparams(folder: Path, **changes: object) -> None:
    (folder / "hparams.json").write_text(json.dumps(HPARAMS | changes))


# -- in ----------------------------------------------------------------------------------------------------------


def test_our_logits_are_those_that_tensorflow_computes():
    """In float32 on both sides; the logits have a deviation of 1.7. A GELU without the tanh is off by 1e-3, a square matrix
    that is not transposed by more than 1."""
    reference = np.load(FIXTURE / "logits.npz")
    with torch.no_grad():
        ours = model_of(FIXTURE)(torch.from_numpy(reference["tokens"])).numpy()
    np.testing.assert_allclose(ours, reference["logits"], atol=2e-5, rtol=0)


def test_what_the_folder_says_of_itself():
    about = describe(FIXTURE)
    assert kind_of(FIXTURE) == about.format == "openai"
    assert about.model == dict(n_layer=2, n_head=4, n_embd=24, context_length=32, tied_head=True)
    assert (about.vocab_size, about.tokenizer, about.labels) == (260, "bpe", None)
    tokenizer = read(FIXTURE).read_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.decode([256, 257, 258])) == (260, " the the")
    assert tokenizer.encode("he the t!").tolist() == [257, 258, 256, 0]
    assert tokenizer.end_of_text == 259


@pytest.mark.parametrize("changes", [{}, {"tied_head": False}, {"n_layer": 1}])
def test_the_shapes_of_a_described_model_are_those_it_has(changes):
    about = describe(FIXTURE)
    model = GPT(vocab_size=about.vocab_size, **about.model | changes)
    about.model.update(changes)
    assert parameter_shapes(about) == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


PARAMETERS = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}


@pytest.mark.parametrize(("size", "n"), PARAMETERS.items())
def test_the_published_sizes_have_the_published_numbers_of_parameters(size, n):
    about = openai.described(size)
    assert sum(int(np.prod(shape)) for shape in parameter_shapes(about).values()) == n
    assert openai._PUBLISHED[size, openai.DATA][0] == 4 * n


def test_what_an_optimizer_left_there_is_passed_over(copy):
    arrays = dict(Bundle(FIXTURE / "model.ckpt"))
    more = {"model/wte/Adam": arrays["model/wte"], "model/h0/ln_1/g/Adam_1": arrays["model/h0/ln_1/g"]}
    write_bundle(copy / "model.ckpt", arrays | more | {"global_step": np.array(7), "beta1_power": np.float32(0.9)})
    assert torch.equal(model_of(copy).wte.weight, model_of(FIXTURE).wte.weight)


def test_rows_that_no_token_has_are_left_out(copy, tmp_path):
    """Some programs make the vocabulary a round number."""
    wide = gpt(vocab_size=264, context_length=32, n_embd=24, n_layer=2)
    openai.write(tmp_path / "wide", wide, read(FIXTURE).read_tokenizer())
    assert (describe(tmp_path / "wide").vocab_size, read(tmp_path / "wide").read_tokenizer().vocab_size) == (264, 260)
    narrow = gpt(vocab_size=260, context_length=32, n_embd=24, n_layer=2, seed=5)
    fill(narrow, read(tmp_path / "wide").tensors)
    tokens = torch.arange(8)[None]
    assert torch.equal(narrow(tokens), wide(tokens)[..., :260])


def test_without_its_files_the_tokenizer_is_gpt2_s_where_the_vocabulary_has_its_size(tmp_path):
    openai.write(tmp_path, gpt(vocab_size=50_257, n_embd=4, n_layer=1, context_length=2), GPT2Tokenizer())
    assert describe(tmp_path).tokenizer == "gpt2"
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / name).unlink()
    assert read(tmp_path).read_tokenizer().fingerprint == GPT2Tokenizer().fingerprint


# -- out ---------------------------------------------------------------------------------------------------------


def test_what_goes_out_again_is_byte_for_byte_what_tensorflow_wrote(tmp_path):
    openai.write(tmp_path, model_of(FIXTURE), read(FIXTURE).read_tokenizer())
    assert {path.name for path in tmp_path.iterdir()} == FILES
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (FIXTURE / name).read_bytes(), name


def test_an_export_replaces_such_files_and_nothing_else(tmp_path):
    copy, tokenizer = tmp_path / "copy", read(FIXTURE).read_tokenizer()
    openai.write(copy, model_of(FIXTURE), tokenizer)
    openai.write(copy, gpt(vocab_size=260, seed=9), tokenizer)
    assert torch.equal(model_of(copy).wte.weight, gpt(vocab_size=260, seed=9).wte.weight)
    (copy / "model.ckpt.meta").write_text("as OpenAI has it")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(UserError, match=r"copy holds model\.ckpt\.meta, which is not of an export"):
        openai.write(copy, gpt(vocab_size=260), tokenizer)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.parametrize("n_embd", [4, 1])
def test_any_model_comes_back(tmp_path, n_embd):
    tokenizer = BPETokenizer.from_corpus(["the cat sat on the mat " * 9 + "einen Käsekuchen für Zoë " * 9], vocab_size=300)
    model = far_from_linear(gpt(vocab_size=tokenizer.vocab_size, n_embd=n_embd, n_head=1, n_layer=11))  # h10 is before h2
    openai.write(tmp_path, model, tokenizer)
    again = model_of(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], parameter), name
    assert read(tmp_path).read_tokenizer().fingerprint == tokenizer.fingerprint


def test_the_small_files_of_the_124m_are_those_that_openai_published(tmp_path):
    """By their sha256; the weights are left out."""

    class Shape(GPT):
        def named_parameters(self, *args, **kwargs):
            return iter([])

    with torch.device("meta"):
        model = Shape(vocab_size=50_257, **openai.described("124M").model)
    openai.write(tmp_path, model, GPT2Tokenizer())
    hashes = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in FILES}
    assert hashes["checkpoint"] == "dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb"
    assert hashes["hparams.json"] == "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318"
    assert hashes["encoder.json"] == "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    assert hashes["vocab.bpe"] == "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


@pytest.mark.parametrize(
    ("changes", "tokenizer", "said"),
    [
        ({"position": "rope"}, BPETokenizer([bytes([i]) for i in range(256)]), "has position=rope"),
        ({"tied_head": False}, BPETokenizer([bytes([i]) for i in range(256)]), "a matrix of its own"),
        ({}, CharTokenizer.from_corpus(["abc"]), "a char tokenizer cannot be represented"),
    ],
)
def test_what_cannot_be_held_is_refused_before_anything_is_written(tmp_path, changes, tokenizer, said):
    with pytest.raises(UserError, match=said):
        openai.write(tmp_path / "out", gpt(**changes), tokenizer)
    assert not (tmp_path / "out").exists()


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 1}, r"has no model/h1/attn/c_attn/b, .*; the two do not belong together"),
        ({"n_layer": 3}, "it has no variable model/h2/ln_1/g, which a model of hparams.json must have"),
        ({"n_embd": 48}, r"model/wte is float32 \(260, 24\), and after hparams\.json must be float32 \(260, 48\)"),
        ({"n_ctx": 64}, r"model/wpe is float32 \(32, 24\)"),
        ({"n_vocab": 261}, r"model/wte is float32 \(260, 24\)"),
        ({"n_head": 5}, r"hparams\.json: such a model cannot be"),
        ({"n_layer": 0}, r"hparams\.json: such a model cannot be"),
        ({"n_ctx": "32"}, r"hparams\.json: such a model cannot be"),
        ({"n_embd": True}, r"hparams\.json: such a model cannot be"),
    ],
)
def test_a_shape_that_is_not_the_weights_is_refused(copy, changes, said):
    other_hparams(copy, **changes)
    with pytest.raises(PretrainedError, match=said) as error:
        read(copy)
    assert str(copy) in str(error.value)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("hparams.json", None, r"hparams\.json: no such file; it says what shape the model has"),
        ("hparams.json", "", r"hparams\.json: expected a JSON object with n_vocab, n_ctx"),
        ("hparams.json", "[]", r"hparams\.json: expected a JSON object"),
        ("hparams.json", '{"n_vocab": 260}', r"hparams\.json: expected .*KeyError\('n_ctx'\)"),
        ("encoder.json", None, r"encoder\.json: no such file; it is a part of the tokenizer"),
        ("vocab.bpe", None, r"vocab\.bpe: no such file; it is a part of the tokenizer"),
        ("encoder.json", "{", r"encoder\.json: "),
        ("encoder.json", '{"a": 0, "<|endoftext|>": 2}', r"encoder\.json: not a JSON object of tokens with the ids 0, 1"),
        ("encoder.json", '{"a": 0, "b": 1}', r"encoder\.json: the last token is not <\|endoftext\|>"),
        ("vocab.bpe", "#version: 0.2\nh e\nĠ t\nĠt he\n", r"vocab\.bpe: joins the tokens in another order"),
        ("model.ckpt.index", None, r"model\.ckpt\.index: no such file"),
        ("model.ckpt.data-00000-of-00001", None, "no such file"),
    ],
)
def test_a_file_that_is_missing_or_torn_is_named(copy, file, text, said):
    (copy / file).unlink() if text is None else (copy / file).write_text(text)
    with pytest.raises(PretrainedError, match=said) as error:
        read(copy).read_tokenizer()
    assert str(copy) in str(error.value)


@pytest.mark.parametrize("rows", [259, 1])
def test_fewer_rows_than_tokens_are_refused(tmp_path, rows):
    """A single row would fit any number of them."""
    openai.write(tmp_path / "few", gpt(vocab_size=rows), read(FIXTURE).read_tokenizer())
    with pytest.raises(PretrainedError, match=rf"few: its tokenizer has 260 tokens, and the model of hparams\.json {rows}$"):
        read(tmp_path / "few").read_tokenizer()


def test_a_variable_of_another_type_is_refused(copy):
    arrays = dict(Bundle(FIXTURE / "model.ckpt"))
    write_bundle(copy / "model.ckpt", arrays | {"model/ln_f/b": arrays["model/ln_f/b"].astype(np.float16)})
    with pytest.raises(PretrainedError, match=r"model/ln_f/b is float16 \(24,\), and .* must be float32 \(24,\)"):
        read(copy)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(PretrainedError, match=r"not the folder of a model of OpenAI's \(it has no hparams\.json\), nor of"):
        describe(tmp_path)


# -- fetching ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(monkeypatch):
    """Two servers that have the fixture in the place of the 124M; what is published of that is what is so of the fixture."""
    monkeypatch.setenv("no_proxy", "*")
    with served() as first, served() as second:
        monkeypatch.setattr(openai, "_SOURCES", tuple(s.url("{size}/{file}") for s in (first, second)))
        for name in openai._FETCHED:
            content = (FIXTURE / name).read_bytes()
            known = (len(content), None if name == "hparams.json" else hashlib.sha256(content).hexdigest())
            monkeypatch.setitem(openai._PUBLISHED, ("124M", name), known)
        first.files, second.files = ({path.name: path.read_bytes() for path in FIXTURE.iterdir()} for _ in range(2))
        yield first, second


def test_three_files_are_fetched_once_into_the_cache(sources, tmp_path):
    folder = openai.fetch("124M", cache=tmp_path / "cache", mirror=None)
    assert folder == tmp_path / "cache" / "openai" / "124M"
    assert {path.name for path in folder.iterdir() if path.suffix not in (".lock", ".sha256")} == set(openai._FETCHED)
    for name in openai._FETCHED:
        assert (folder / name).read_bytes() == (FIXTURE / name).read_bytes()
    assert openai.fetch("124M", cache=tmp_path / "cache", mirror=tmp_path / "no mirror") == folder
    assert [len(server.requests) for server in sources] == [3, 0]


def test_a_mirror_with_all_three_is_used_as_it_is(sources, tmp_path):
    mirror = shutil.copytree(FIXTURE, tmp_path / "mirror" / "gpt2" / "124M")
    assert openai.fetch("124M", cache=tmp_path / "cache", mirror=tmp_path / "mirror") == mirror
    assert not (tmp_path / "cache").exists()
    (mirror / "model.ckpt.index").write_bytes(b"another")  # then none of it is
    assert openai.fetch("124M", cache=tmp_path / "cache", mirror=tmp_path / "mirror") == tmp_path / "cache" / "openai" / "124M"
    assert {path.name for path in (tmp_path / "cache" / "openai" / "124M").iterdir()} >= set(openai._FETCHED)
    (mirror / "model.ckpt.index").unlink()
    assert openai.fetch("124M", cache=tmp_path / "cache", mirror=tmp_path / "mirror") == tmp_path / "cache" / "openai" / "124M"
    assert [len(server.requests) for server in sources] == [3, 0]


def test_an_interrupted_fetch_goes_on_at_the_second_source_and_a_wrong_file_is_never_kept(sources, tmp_path):
    first, second = sources
    first.cut_at, second.status = 10_000, 503
    with pytest.raises(UserError, match="503"):
        openai.fetch("124M", cache=tmp_path, mirror=None)
    second.status = None
    folder = openai.fetch("124M", cache=tmp_path, mirror=None)
    assert "bytes=10000-" in second.requests
    model_of_fixture = model_of(FIXTURE)
    shutil.rmtree(folder)
    first.cut_at, first.files[openai.DATA] = None, bytes(len(first.files[openai.DATA]))
    folder = openai.fetch("124M", cache=tmp_path, mirror=None)
    for name in ("encoder.json", "vocab.bpe"):  # of the fixture's own tokenizer
        shutil.copy(FIXTURE / name, folder)
    assert torch.equal(model_of(folder).wte.weight, model_of_fixture.wte.weight)
    shutil.rmtree(folder)
    second.files[openai.DATA] = first.files[openai.DATA]
    with pytest.raises(UserError, match=re.escape(f"{openai.DATA} does not have the expected content")):
        openai.fetch("124M", cache=tmp_path, mirror=None)
    assert not (folder / openai.DATA).exists()
