"""GGUF files: llama.cpp itself reads them and says what our model and tokenizer say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from llama import ask, byte_level_model, llama_server

from gpt2x.errors import UserError
from gpt2x.interop.gguf import merges, write_gguf
from gpt2x.model.gpt import GPT
from gpt2x.model.lora import add_lora
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
            parameter.mul_(3 if parameter.dim() == 2 else 1).add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.from_corpus([STORY[:20_000]], vocab_size=400)


def questions_along(tokens: list[int], start: int) -> list[tuple[str, dict]]:
    """One about each next token of `tokens` from `start` on. (Of several the server leaves out half characters' scores.)"""
    greedy = dict(n_predict=1, n_probs=5, temperature=0, samplers=["top_k"], top_k=1, cache_prompt=False, return_tokens=True)
    return [("/completion", {"prompt": tokens[:end]} | greedy) for end in range(start, len(tokens))]


@torch.no_grad()
def assert_same_scores(model: GPT, tokens: list[int], start: int, answers: list[dict], tolerance: float) -> None:
    logprobs = model(torch.tensor([tokens]))[0].log_softmax(-1)
    clear = compared = 0
    for end, answer in zip(range(start, len(tokens)), answers, strict=True):
        ours = logprobs[end - 1]
        best = ours.topk(2)
        if best.values[0] - best.values[1] > 0.05:
            clear += 1
            assert answer["tokens"] == [best.indices[0]]
        for entry in answer.get("completion_probabilities", []):
            for candidate in entry["top_logprobs"]:
                compared += 1
                assert candidate["logprob"] == pytest.approx(ours[candidate["id"]].item(), abs=tolerance)
    assert clear >= 10
    assert compared >= 50


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
    assert_same_scores(model, tokens, 8, answers, tolerance=0.03)


def test_the_greedy_text_is_ours(tmp_path, bpe):
    model = make_model(bpe.vocab_size, tied_head=False)
    write_gguf(tmp_path / "model.gguf", model, bpe)
    prompt = bpe.encode("The old keeper").tolist()
    tokens, clear = list(prompt), True
    with torch.no_grad():
        while clear and len(tokens) < 40:
            best = model(torch.tensor([tokens]))[0, -1].topk(2)
            clear = bool(best.values[0] - best.values[1] > 0.05)
            tokens += [int(best.indices[0])] * clear
    new = len(tokens) - len(prompt)
    assert new >= 3
    question = dict(prompt="The old keeper", n_predict=new, temperature=0, ignore_eos=True, return_tokens=True)
    (answer,) = llama_cpp(tmp_path / "model.gguf", ("/completion", question))
    assert answer["tokens"] == tokens[len(prompt) :]


@pytest.mark.parametrize("spare", [0, 47], ids=["vocabulary", "padded vocabulary"])
@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
def test_llama_cpp_tokenizes_as_we_do(tmp_path, bpe, kind, spare):
    tokenizer = bpe if kind == "bpe" else GPT2Tokenizer()
    write_gguf(tmp_path / "model.gguf", make_model(tokenizer.vocab_size + spare, n_embd=32), tokenizer, weights="q8_0")
    texts = [TEXT, STORY[:3000], "   leading", "digits 1234567 and   blanks  ", "we've DON'T can't"]
    tokenize = [("/tokenize", {"content": text, "parse_special": False}) for text in texts]
    detokenize = [("/detokenize", {"tokens": tokenizer.encode(text).tolist()}) for text in texts]
    answers = llama_cpp(tmp_path / "model.gguf", *tokenize, *detokenize, ("/tokenize", {"content": "<|endoftext|>"}))
    *_, special = answers
    assert [a["tokens"] for a in answers[: len(texts)]] == [tokenizer.encode(text).tolist() for text in texts]
    assert [a["content"] for a in answers[len(texts) : -1]] == texts
    assert special["tokens"] in ([tokenizer.end_of_text], tokenizer.encode("<|endoftext|>").tolist())


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
        (dict(vocab_size=5), CharTokenizer("abcd"), "f32", "char tokenizer cannot be represented.*tokenizer=bpe"),
        (dict(vocab_size=100), "bpe", "f32", "model has 100 tokens and the tokenizer 400"),
        (dict(vocab_size=400, position="rope"), "bpe", "f32", "position=rope, and llama.cpp's gpt2 learned positions alone"),
        (dict(vocab_size=400, position="alibi"), "bpe", "f16", "position=alibi.*train one with model.position=learned"),
        (dict(vocab_size=400, position="none"), "bpe", "q8_0", "position=none"),
        (dict(vocab_size=400, n_embd=48), "bpe", "q8_0", "q8_0 needs a width that 32 divides.*n_embd is 48.*f16 or f32"),
    ],
    ids=["characters", "too few rows", "rope", "alibi", "no positions", "width"],
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
