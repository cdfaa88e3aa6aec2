"""GGUF files: llama.cpp itself reads them and says what our model and tokenizer say.

How near it comes: its GELU is a table in fp16 and its cache of keys and values is fp16, so that in f32 log-probabilities of a
model as wide and as far from linear as the one below differ by up to 0.006; with f16's matrices by up to 0.01. With q8_0 it
rounds the states that enter a matrix to 8 bits as well, which ours does not: up to 0.11, a tenth of their own spread. The
tolerances are about twice that. A likeliest token is compared where twice the tolerance lies between it and the second.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama import ask, byte_level_model, llama_server

from gpt2x.errors import UserError
from gpt2x.interop.gguf import merges, write_gguf
from gpt2x.model.gpt import GPT
from gpt2x.model.lora import add_lora
from gpt2x.tokenizer.base import Tokenizer
from gpt2x.tokenizer.bpe import BPETokenizer
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer, byte_letters, official_files

STORY = (Path(__file__).parents[2] / "gpt2x" / "data" / "storybook.txt").read_text(encoding="utf-8")
TEXT = "The lantern's keeper, in 1842, had 3 cafés — 雪 and 🙂;\n\n  they'll say <|endoftext|>\t"


def llama_cpp(gguf: Path, *questions: tuple[str, dict], context: int = 64) -> list[dict]:
    """What a server with this model answers to (path, question) pairs."""
    with llama_server(gguf, context=context) as address:
        return [ask(address, *question) for question in questions]


def make_model(vocab_size: int, *, n_embd: int = 64, context_length: int = 64, **changes) -> GPT:
    """Random weights, large enough for a token to stand out."""
    generator = torch.Generator().manual_seed(3)
    shape = dict(n_layer=2, n_head=2, n_embd=n_embd, context_length=context_length, **changes)
    model = GPT(vocab_size=vocab_size, **shape, generator=generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, which else are 1 and 0 whatever their names
            parameter.mul_(8 if parameter.dim() == 2 else 1).add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.from_corpus([STORY[:20_000]], vocab_size=400)


TOLERANCE = {"f32": 0.012, "f16": 0.02, "q8_0": 0.2}


def questions_along(tokens: list[int], start: int) -> list[tuple[str, dict]]:
    """One about each next token of `tokens` from `start` on. (Of several the server leaves out half characters' scores.)"""
    greedy = dict(n_predict=1, n_probs=400, temperature=0, samplers=["top_k"], top_k=1, cache_prompt=False, return_tokens=True)
    return [("/completion", {"prompt": tokens[:end]} | greedy) for end in range(start, len(tokens))]


@torch.no_grad()
def assert_same_scores(model: GPT, tokens: list[int], start: int, answers: list[dict], tolerance: float) -> None:
    logprobs = model(torch.tensor([tokens]))[0].log_softmax(-1)
    clear = compared = 0
    for end, answer in zip(range(start, len(tokens)), answers, strict=True):
        ours = logprobs[end - 1]
        best = ours.topk(2)
        if best.values[0] - best.values[1] > 2 * tolerance:
            clear += 1
            assert answer["tokens"] == [best.indices[0]]
        for entry in answer.get("completion_probabilities", []):
            for candidate in entry["top_logprobs"]:
                compared += 1
                assert candidate["logprob"] == pytest.approx(ours[candidate["id"]].item(), abs=tolerance)
    assert clear >= 8
    assert compared >= 10 * model.vocab_size


@pytest.mark.parametrize("tied_head", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("weights", ["f32", "f16", "q8_0"])
def test_llama_cpp_computes_our_model(tmp_path, bpe, weights, tied_head):
    model = make_model(bpe.vocab_size, tied_head=tied_head)
    write_gguf(tmp_path / "model.gguf", model, bpe, weights=weights)
    tokens = bpe.encode(STORY[:400]).tolist()[:40]
    answers = llama_cpp(tmp_path / "model.gguf", *questions_along(tokens, 8))
    if weights == "q8_0":  # compare with a model rounded to 8 bits likewise: a scale in fp16 for every 32 weights
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2 and name != "wpe.weight":
                    blocks = parameter.view(-1, 32)
                    scale = (blocks.abs().amax(1, keepdim=True) / 127).half().float()
                    blocks.copy_((blocks / scale).round() * scale)
    assert_same_scores(model, tokens, 8, answers, TOLERANCE[weights])


def test_the_greedy_text_is_ours(tmp_path, bpe):
    """Of several beginnings, as far as the likeliest token is one in llama.cpp's rounding too."""
    model = make_model(bpe.vocab_size, tied_head=False)
    write_gguf(tmp_path / "model.gguf", model, bpe)
    beginnings = ["The old keeper", "Once", "She said", "A boat", "In the morning", "Why", "The lantern", "He took"]
    texts = [greedy_text(model, bpe.encode(text).tolist(), margin=2 * TOLERANCE["f32"]) for text in beginnings]
    assert sum(map(len, texts)) >= 30
    fixed = dict(temperature=0, ignore_eos=True, return_tokens=True)
    asked = [("/completion", dict(prompt=text, n_predict=len(ours)) | fixed) for text, ours in zip(beginnings, texts) if ours]
    answers = llama_cpp(tmp_path / "model.gguf", *asked)
    assert [answer["tokens"] for answer in answers] == [ours for ours in texts if ours]


@torch.no_grad()
def greedy_text(model: GPT, tokens: list[int], *, margin: float) -> list[int]:
    """The likeliest tokens after these, up to where the second likeliest comes nearer than `margin`, or the context ends."""
    start = len(tokens)
    while len(tokens) < model.context_length:
        best = model(torch.tensor([tokens]))[0, -1].topk(2)
        if best.values[0] - best.values[1] < margin:
            break
        tokens = [*tokens, int(best.indices[0])]
    return tokens[start:]


# -- tokens ------------------------------------------------------------------------------------------------------

CHARACTERS = "".join(sorted({*STORY, *"\0\t\r\u00a0éè雪雨🙂🙃н\u0301\u2028"}))
TOKENIZERS = {
    "gpt2": GPT2Tokenizer,
    "bpe": lambda: BPETokenizer.from_corpus([STORY[:20_000]], vocab_size=400),
    "bytes": lambda: byte_level_model()[1],
    "characters": lambda: CharTokenizer(CHARACTERS),
    "ascii characters": lambda: CharTokenizer("".join(map(chr, range(128)))),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def served(request, tmp_path_factory):
    """A tokenizer of ours, and the address of llama.cpp with a model that has it, with 47 rows to spare."""
    tokenizer = TOKENIZERS[request.param]()
    path = tmp_path_factory.mktemp("served") / "model.gguf"
    write_gguf(path, make_model(tokenizer.vocab_size + 47, n_embd=32), tokenizer, weights="q8_0")
    with llama_server(path) as address:
        yield tokenizer, address


def assert_same_tokens(tokenizer: Tokenizer, address: str, text: str) -> None:
    ids = tokenizer.encode(text).tolist()
    assert ask(address, "/tokenize", {"content": text, "parse_special": False})["tokens"] == ids
    assert ask(address, "/detokenize", {"tokens": ids})["content"] == text


BITS = ["'ll", "'S", "don't", " ", "  ", "\t", "\r\n", "\n\n", "\u00a0", "\u3000", "1842", "½²", "é", "e\u0301", "雪", "🙂"]
ANY_TEXT = st.lists(st.sampled_from([*BITS, "<|endoftext|>"]) | st.text(max_size=5), max_size=20).map("".join)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_llama_cpp_tokenizes_any_text_as_we_do(served, data):
    tokenizer, address = served
    known = getattr(tokenizer, "characters", None)
    assert_same_tokens(tokenizer, address, data.draw(ANY_TEXT if known is None else st.text(known, max_size=60)))


def test_llama_cpp_tokenizes_hard_texts_as_we_do(served):
    tokenizer, address = served
    for text in (TEXT, STORY[:3000], "   leading", "digits 1234567 and   blanks  ", "we've DON'T can't", f"a{' ' * 3000}b"):
        if isinstance(tokenizer, CharTokenizer):
            text = "".join(c for c in text if c in tokenizer.characters)
        assert_same_tokens(tokenizer, address, text)
    special = ask(address, "/tokenize", {"content": "<|endoftext|>", "parse_special": True})
    assert special["tokens"] == [tokenizer.end_of_text]


def test_llama_cpp_tokenizes_its_own_hard_cases_as_openai_did(tmp_path, mirror):
    names = ("gpt2-tokenizer-cases.inp", "gpt2-tokenizer-cases.out")
    if not all((mirror / name).is_file() for name in names):
        pytest.skip(f"GPT2X_MIRROR has no {' or no '.join(names)}")
    texts, ids = ((mirror / name).read_bytes().decode("utf-8") for name in names)
    texts, ids = texts.split("\n__ggml_vocab_test__\n")[:46], [[*map(int, line.split())] for line in ids.split("\n")[:46]]
    tokenizer = GPT2Tokenizer()
    write_gguf(tmp_path / "model.gguf", make_model(tokenizer.vocab_size, n_embd=32), tokenizer, weights="q8_0")
    answers = llama_cpp(tmp_path / "model.gguf", *(("/tokenize", {"content": text}) for text in texts))
    assert [answer["tokens"] for answer in answers] == ids


def test_a_character_tokenizer_says_what_ours_says(tmp_path):
    """Of the characters that it does not know, which ours refuses, llama.cpp says nothing."""
    tokenizer = CharTokenizer(CHARACTERS)
    model = make_model(tokenizer.vocab_size)
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    tokens = tokenizer.encode("Snow, 雪, on the café's roof 🙂, said the old keeper.").tolist()
    unknown = ("/tokenize", {"content": "caféê 雩雪☃🙁!"})
    *answers, cut = llama_cpp(tmp_path / "model.gguf", *questions_along(tokens, 8), unknown)
    assert_same_scores(model, tokens, 8, answers, TOLERANCE["f32"])
    assert tokenizer.decode(cut["tokens"]) == "café 雪!"


def test_a_vocabulary_without_merges(tmp_path):
    model, tokenizer = byte_level_model(context_length=256)
    assert merges(tokenizer) == []
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    texts = [TEXT, "no merges", "nomerges no merges\n"]
    schema = {
        "type": "object",
        "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 100}},
        "required": ["score"],
    }
    question = {"messages": [{"role": "user", "content": "How good?"}], "seed": 1}
    question["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    asked = [("/tokenize", {"content": text, "parse_special": False}) for text in texts]
    *answers, judged = llama_cpp(tmp_path / "model.gguf", *asked, ("/v1/chat/completions", question), context=256)
    assert [answer["tokens"] for answer in answers] == [list(text.encode()) for text in texts]
    assert 0 <= json.loads(judged["choices"][0]["message"]["content"])["score"] <= 100


def test_the_file_holds_our_weights_and_ends_text_at_our_token(tmp_path, bpe):
    gguf = pytest.importorskip("gguf")
    model = make_model(bpe.vocab_size + 3, tied_head=False)
    write_gguf(tmp_path / "model.gguf", model, bpe)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == len(list(model.parameters()))
    assert np.array_equal(tensors["blk.1.ffn_down.weight"], model.h[1].mlp.c_proj.weight.detach().numpy())
    assert np.array_equal(tensors["output.weight"], model.lm_head.weight.detach().numpy())
    for name in ("bos", "eos", "unknown"):
        assert reader.get_field(f"tokenizer.ggml.{name}_token_id").contents() == bpe.end_of_text
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"
    strings = reader.get_field("tokenizer.ggml.tokens").contents()
    assert len(set(strings)) == len(strings) == model.vocab_size


def test_merges_are_those_that_openai_published():
    letters = byte_letters()
    ours = [" ".join("".join(letters[byte] for byte in part) for part in pair) for pair in merges(GPT2Tokenizer())]
    assert ours == official_files()["vocab.bpe"].decode("utf-8").split("\n")[1:-1]


def test_every_learned_token_has_a_merge(bpe):
    pairs = merges(bpe)
    assert [left + right for left, right in pairs] == list(bpe.tokens[256:])
    assert all(part in bpe.tokens for pair in pairs for part in pair)


@pytest.mark.parametrize(
    ("model", "tokenizer", "weights", "message"),
    [
        (dict(vocab_size=4), CharTokenizer("abcd"), "f32", "model has 4 tokens and the tokenizer 5"),
        (dict(vocab_size=100), "bpe", "f32", "model has 100 tokens and the tokenizer 400"),
        (dict(vocab_size=400, position="rope"), "bpe", "f32", "the model has position=rope, and GPT-2 has position=learned"),
        (
            dict(vocab_size=400, mlp="relu2", bias=False),
            "bpe",
            "f16",
            "mlp=relu2, bias=false, and GPT-2 has mlp=gelu, bias=true",
        ),
        (dict(vocab_size=400, position="none"), "bpe", "q8_0", "position=none"),
        (dict(vocab_size=400, n_embd=48), "bpe", "q8_0", "q8_0 needs a width that 32 divides.*n_embd is 48.*f16 or f32"),
    ],
    ids=["too few characters", "too few rows", "rope", "alibi", "no positions", "width"],
)
def test_what_cannot_be_represented_is_refused(tmp_path, bpe, model, tokenizer, weights, message):
    with pytest.raises(UserError, match=message):
        write_gguf(tmp_path / "model.gguf", make_model(**model), bpe if tokenizer == "bpe" else tokenizer, weights=weights)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(tmp_path, bpe, monkeypatch):
    gguf = pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"old")

    def full(self, *args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OSError, match="No space"):
        write_gguf(tmp_path / "model.gguf", make_model(bpe.vocab_size), bpe)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == b"old"


def test_without_the_package_the_remedy_is_told(tmp_path, bpe, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        write_gguf(tmp_path / "model.gguf", make_model(bpe.vocab_size), bpe)


def test_an_adapter_is_not_left_out_in_silence(tmp_path, bpe):
    model = make_model(bpe.vocab_size)
    add_lora(model, rank=2, alpha=2, targets=["c_fc"])
    with pytest.raises(ValueError, match="merge it first"):
        write_gguf(tmp_path / "model.gguf", model, bpe)
    assert list(tmp_path.iterdir()) == []
