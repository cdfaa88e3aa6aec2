"""Published outputs of OpenAI's own weights, for whoever has them:

    gpt2x-train init=openai init.size=124M trainer.max_steps=1        fetches them into outputs/cache/openai
    pytest tests/interop/test_real_weights.py --real-weights=outputs/cache/openai

What measures the real model measures a toy one first, beside transformers with the same weights: so a real figure that is
not met says something of the weights or of the model, not of the test.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import gpt, hugging_face, restless
from torch import Tensor, nn

from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.generator import TextGenerator
from gpt2x.interop import openai
from gpt2x.task.template import load_template
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer
from gpt2x.training.load import load_run
from gpt2x.training.optimizer import adamw

END_OF_TEXT = 50_256
tokenizer = functools.cache(GPT2Tokenizer)


@pytest.fixture(scope="session")
def weights(request) -> Callable[[str], Path]:
    """The folder of OpenAI's model of a size; the test is skipped where it is not given."""

    def folder(size: str) -> Path:
        given = request.config.getoption("--real-weights")
        if given is None:
            pytest.skip("needs OpenAI's weights: pytest --real-weights=FOLDER, such as outputs/cache/openai")
        if not (Path(given) / size / "hparams.json").is_file():
            pytest.skip(f"--real-weights={given} holds no {size}")
        return Path(given) / size

    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[Path, nn.Module]:
    """A folder as OpenAI's with GPT-2's tokens and random weights, and transformers' model of the same weights."""
    model = restless(gpt(vocab_size=50_257, n_embd=16, n_layer=2, context_length=256))
    openai.write(tmp_path_factory.mktemp("toy") / "openai", model, GPT2Tokenizer())
    return tmp_path_factory.getbasetemp() / "toy0" / "openai", hugging_face(model)


# -- what is measured, of a folder --------------------------------------------------------------------------------


def greedy(folder: Path, prompt: str, n: int) -> list[int]:
    """The `n` likeliest tokens after a prompt, one after another."""
    run = load_run(folder)
    settings = SamplingConfig(max_new_tokens=n, temperature=0.0, top_k=None)
    return TextGenerator(run.model, run.tokenizer).generate([prompt], sampling=settings, seed=1)[0].tokens


@torch.no_grad()
def loss(model: nn.Module, ids: Tensor) -> float:
    """Mean cross-entropy (nats) of all predictions within rows of ids (B, T + 1)."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()


def strided_perplexity(model: nn.Module, ids: Tensor, length: int) -> float:
    """As transformers' documentation computes it with a stride as long as the context: in windows end to end, of each of
    which the first token is not predicted, but counted."""
    nats = 0.0
    for start in range(0, len(ids), length):
        window = ids[None, start : start + length]
        nats += loss(model, window) * window.shape[1] if window.shape[1] > 1 else 0.0
    return float(np.exp(nats / len(ids)))


def losses_of_ten_steps(model: nn.Module, ids: Tensor) -> list[float]:
    """One batch (4, 64 + 1), ten times: the loss before each step, as llm.c's test_gpt2.c prints it."""
    optimizer = adamw(model, lr=1e-4, weight_decay=0.01, betas=[0.9, 0.999], eps=1e-8, decay_all=True, layer_decay=1.0)
    losses = []
    for _ in range(10):
        value = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        losses.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return losses


def batches_of(ids: list[int], n: int) -> Tensor:
    """The first `n` batches (n, 4, 64 + 1) of a row of ids: each predicts the 256 tokens that follow those of the last."""
    row = torch.tensor(ids[: n * 256 + 1])
    return torch.cat([row[:-1].view(n, 4, 64), row[1:].view(n, 4, 64)[..., -1:]], dim=-1)


def book_loss(model: nn.Module, records: list[dict]) -> float:
    """The loss of the first forty records as the book (LLMs-from-scratch, chapter 7) computes it: in batches of eight,
    filled up to the longest with end-of-text, of which the first is predicted; the mean of the batches' means."""
    template = load_template("alpaca")
    losses = []
    for start in range(0, 40, 8):
        texts = [template.render(r["instruction"], r["input"]) + r["output"] for r in records[start : start + 8]]
        rows = [[*tokenizer().encode(text).tolist(), END_OF_TEXT] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [END_OF_TEXT] * (width - len(row)) for row in rows])
        targets = torch.tensor([row[1:] + [-100] * (width - len(row)) for row in rows])
        with torch.no_grad():
            losses.append(F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), targets.flatten()).item())
    return float(np.mean(losses))


def shakespeare_ids(mirror: Path) -> list[int]:
    """The 32,768 tokens that llm.c validates on: sections of plays, each after an end-of-text."""
    sections = (mirror / "tinyshakespeare-input.txt").read_text(encoding="utf-8").split("\n\n")
    ids: list[int] = []
    for i, section in enumerate(sections):
        text = section + "\n\n" * (i < len(sections) - 1)
        ids += [END_OF_TEXT, *tokenizer().encode(text).tolist()]
    assert len(ids) == 338_028  # as llm.c's script prints
    return ids[:32_768]


def book_records(mirror: Path) -> list[dict]:
    """The book's validation records: what its first 85 % and the next 10 % leave."""
    records = json.loads((mirror / "instruction-data.json").read_text(encoding="utf-8"))
    return records[int(len(records) * 0.85) + int(len(records) * 0.1) :]


def text_of_wikitext(path: Path) -> str:
    """wiki.test.raw as the data set on the hub has it, joined as transformers' documentation does."""
    rows = path.read_text(encoding="utf-8").split("\n")[:-1]
    return "\n\n".join(row + "\n" if row.strip() else "" for row in rows)


# -- the toy model: is it measured right? -------------------------------------------------------------------------


def test_the_measures_are_those_of_transformers(toy):
    folder, theirs = toy
    ours = load_run(folder).model
    prompt = torch.tensor(tokenizer().encode("Every effort moves you").astype(np.int64))[None]
    made = theirs.generate(prompt, do_sample=False, max_new_tokens=12, pad_token_id=END_OF_TEXT, eos_token_id=END_OF_TEXT)
    assert greedy(folder, "Every effort moves you", 12) == made[0, 4:].tolist()
    ids = torch.randint(50_257, (520,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert loss(ours, ids[None, :65]) == pytest.approx(theirs(ids[None, :65], labels=ids[None, :65]).loss.item(), rel=1e-5)
        nats = sum(theirs(w, labels=w).loss.item() * w.shape[1] for w in (ids[None, i : i + 256] for i in range(0, 520, 256)))
    assert strided_perplexity(ours, ids, 256) == pytest.approx(np.exp(nats / 520), rel=1e-4)


def test_ten_steps_are_those_of_torch_s_own_optimizer_on_transformers(toy):
    folder, theirs = toy
    ids = batches_of(list(range(257)), 1)[0]
    assert ids.shape == (4, 65)
    assert ids[:, 0].tolist() == [0, 64, 128, 192]
    assert ids[:, -1].tolist() == [64, 128, 192, 256]
    optimizer, expected = torch.optim.AdamW(theirs.parameters(), lr=1e-4, weight_decay=0.01), []
    weights = {name: parameter.detach().clone() for name, parameter in theirs.state_dict().items()}
    for _ in range(10):
        value = F.cross_entropy(theirs(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        expected.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    theirs.load_state_dict(weights)
    assert losses_of_ten_steps(load_run(folder).model, ids) == pytest.approx(expected, rel=1e-4)
    assert expected[9] < expected[0]


def test_the_book_s_loss_counts_one_end_of_text_a_record(toy):
    folder, theirs = toy
    records = [{"instruction": f"Count to {i}.", "input": "now" * (i % 2), "output": " ".join("abc" * i)} for i in range(40)]
    means = []
    for start in range(0, 40, 8):
        nats = tokens = 0
        for record in records[start : start + 8]:  # one by one: there is nothing to fill up
            text = load_template("alpaca").render(record["instruction"], record["input"]) + record["output"]
            row = torch.tensor([[*tokenizer().encode(text).tolist(), END_OF_TEXT]])
            with torch.no_grad():
                nats += theirs(row, labels=row).loss.item() * (row.shape[1] - 1)
            tokens += row.shape[1] - 1
        means.append(nats / tokens)
    assert book_loss(load_run(folder).model, records) == pytest.approx(np.mean(means), rel=1e-5)


def test_the_book_s_prompt_is_the_template_s():
    said = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    prompt = load_template("alpaca").render("Do it.", "Now")
    assert prompt == f"{said}\n\n### Instruction:\nDo it.\n\n### Input:\nNow\n\n### Response:\n"


def test_the_tokens_of_shakespeare_are_those_of_llm_c(mirror):
    ids = shakespeare_ids(mirror)
    assert ids[:10] == [50256, 5962, 22307, 25, 198, 8421, 356, 5120, 597, 2252]
    assert hashlib.sha256(repr(ids[:257]).encode()).hexdigest() == (
        "6ea91cc00fbd5cbc7596370a5edddfe721eedf789f5263db6790bb51072e3b6b"
    )


def test_the_book_s_records_are_fifty_five(mirror):
    assert len(book_records(mirror)) == 55


def test_rows_of_wikitext_are_joined_as_on_the_hub(tmp_path):
    (tmp_path / "wiki.test.raw").write_text(" \n = Robert = \n \n He is . \n")
    assert text_of_wikitext(tmp_path / "wiki.test.raw") == "\n\n = Robert = \n\n\n\n\n He is . \n"


# -- OpenAI's own: --real-weights=FOLDER --------------------------------------------------------------------------

CONTINUED = [  # 124M, greedy
    # transformers, tests/models/gpt2/test_modeling_gpt2.py
    ("The dog", " was found in a field near the intersection of West and West Streets.\n\nThe dog"),
    # picoGPT's README
    (
        "Alan Turing theorized that computers would one day become",
        " the most powerful machines on the planet.\n\nThe computer is a machine that can perform complex calculations, and it "
        "can perform these calculations in a way that is very similar to the human brain.\n",
    ),
    # a check script for a "GPT-2 in few bytes" task, on the same files
    ("Hello, I am a language model", "er. I am a programmer. I am a writer. I am a writer. I am a"),
    ("The meaning of life is", " not the same as the meaning of death.\n\nThe meaning of life is not the same as"),
    ("Once upon a time", ", the world was a place of great beauty and great danger. The world was a place of great"),
]


def test_the_pieces_have_as_many_tokens_as_were_published():
    """18, 40 and 20: a continuation that is cut out wrongly would not."""
    assert [len(tokenizer().encode(text)) for _, text in CONTINUED] == [18, 40, 20, 20, 20]


@pytest.mark.parametrize(("prompt", "text"), CONTINUED, ids=[prompt for prompt, _ in CONTINUED])
def test_124M_continues_as_published(weights, prompt, text):
    tokens = greedy(weights("124M"), prompt, len(tokenizer().encode(text)))
    assert tokenizer().decode(tokens) == text


def test_124M_has_the_loss_of_transformerlens_on_hello_world(weights):
    """loss_store["gpt2-small"] in TransformerLens' tests/acceptance/test_hooked_transformer.py."""
    ids = torch.tensor([[50256, 15496, 995, 0]])
    assert loss(load_run(weights("124M")).model, ids) == pytest.approx(5.331855773925781, abs=5e-4)


def test_124M_learns_one_batch_as_in_llm_c(weights, mirror):
    """llm.c, test_gpt2.c, with its own tolerance."""
    expected = [
        *(5.270007133483887, 4.059706687927246, 3.3751230239868164, 2.8007826805114746, 2.315382242202759),
        *(1.8490285873413086, 1.3946564197540283, 0.9991465210914612, 0.6240804195404053, 0.37651097774505615),
    ]
    losses = losses_of_ten_steps(load_run(weights("124M")).model, batches_of(shakespeare_ids(mirror), 1)[0])
    assert losses == pytest.approx(expected, abs=0.01)


def test_124M_begins_on_shakespeare_as_in_llm_c(weights, mirror):
    """llm.c's README, a run on the processor: the validation loss before training."""
    model = load_run(weights("124M")).model
    losses = [loss(model, ids) for ids in batches_of(shakespeare_ids(mirror), 5)]
    assert np.mean(losses) == pytest.approx(5.252026, abs=0.01)


def test_355M_begins_on_the_book_s_instructions_as_in_the_book(weights, mirror):
    """LLMs-from-scratch, ch07.ipynb: the validation loss before fine-tuning; printed there from another machine."""
    assert book_loss(load_run(weights("355M")).model, book_records(mirror)) == pytest.approx(3.7619347, abs=0.02)


@pytest.mark.parametrize(("size", "perplexity"), [("124M", 29.94), ("774M", 19.44)])
def test_the_perplexity_on_wikitext_2_is_that_of_transformers(weights, mirror, size, perplexity):
    """transformers' documentation (perplexity of fixed-length models) and its issue 13761, stride 1,024."""
    folder, text = weights(size), mirror / "wiki.test.raw"  # of wikitext-2-raw-v1
    if not text.is_file():
        pytest.skip(f"{text}: put WikiText-2's raw test file there")
    ids = torch.from_numpy(tokenizer().encode(text_of_wikitext(text)).astype(np.int64))
    assert strided_perplexity(load_run(folder).model, ids, 1024) == pytest.approx(perplexity, abs=0.05)
