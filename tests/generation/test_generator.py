"""TextGenerator: prompts to completions, pieces as they come, stops, ends, beams and Ctrl-C."""

from __future__ import annotations

import pytest
from models import far_from_linear, gpt

from gpt2x.errors import UserError
from gpt2x.generation import generator as module
from gpt2x.generation.config import SamplingConfig
from gpt2x.generation.generator import TextGenerator
from gpt2x.tokenizer.base import TokenizerError
from gpt2x.tokenizer.bpe import BPETokenizer
from gpt2x.tokenizer.char import CharTokenizer

TEXT = "the cat sat on the mat and the dog sat on the log\n" * 3
BPE = BPETokenizer.from_corpus([TEXT], vocab_size=290)
CHAR = CharTokenizer.from_corpus(["abcdefghij k"])


def make(tokenizer=BPE, **settings) -> TextGenerator:
    model = far_from_linear(gpt(vocab_size=tokenizer.vocab_size, n_embd=16, n_head=2, n_layer=2)).eval()
    return TextGenerator(model, tokenizer, **settings)


def sampling(**changes) -> SamplingConfig:
    return SamplingConfig(**({"max_new_tokens": 12, "temperature": 1.0, "stop_at_end_of_text": False} | changes))


def heard(generator: TextGenerator, prompts: list[str], settings: SamplingConfig, seed=1):
    """The completions, and what `on_text` was told of each."""
    pieces: dict[int, str] = {}

    def on_text(index: int, text: str) -> None:
        assert text
        pieces[index] = pieces.get(index, "") + text

    done = generator.generate(prompts, sampling=settings, seed=seed, on_text=on_text)
    assert [pieces.get(i, "") for i in range(len(done))] == [completion.text for completion in done]
    return done


def test_completions_come_in_order_and_each_is_the_one_it_would_be_alone():
    generator, prompts = make(), ["the", "a dog", "", "the cat sat on"]
    together = heard(generator, prompts, sampling(samples=3))
    assert [(c.prompt, c.sample) for c in together] == [(prompt, n) for prompt in prompts for n in range(3)]
    for i, prompt in enumerate(prompts):
        alone = heard(generator, [prompt], sampling(samples=3))
        assert alone == together[3 * i : 3 * i + 3]
    assert all(c.finish == "length" and len(c.tokens) == 12 and c.logprobs is None for c in together)
    assert all(c.text == BPE.decode(c.tokens) for c in together)


def test_a_text_ends_before_a_stop_string_wherever_its_tokens_are_cut():
    generator = make(CHAR)

    def plain(**changes) -> SamplingConfig:
        return sampling(banned=["<|endoftext|>"], **changes)

    (free,) = heard(generator, ["a"], plain(max_new_tokens=20))
    stop = free.text[7:10]  # three tokens
    cut = free.text.index(stop)
    done = heard(generator, ["a", "b"], plain(max_new_tokens=20, stop=["zzz", stop]))
    assert done[0].text == free.text[:cut] and done[0].finish == "stop"
    assert CHAR.decode(done[0].tokens) == free.text[: cut + 3]
    assert len(done[1].tokens) <= 20
    assert heard(generator, ["a"], plain(max_new_tokens=cut + 2, stop=[stop]))[0].text == free.text[: cut + 2]


def test_a_stop_string_may_be_written_with_escapes():
    generator = make(CharTokenizer.from_corpus(["a\n\t\\"]))
    (free,) = heard(generator, ["a"], sampling(max_new_tokens=23))
    for written, meant in [("\\n", "\n"), ("\\t", "\t"), ("\\\\", "\\"), ("\n", "\n")]:
        if meant in free.text:
            (done,) = heard(generator, ["a"], sampling(max_new_tokens=23, stop=[written]))
            assert done.text == free.text[: free.text.index(meant)]
    assert {"\n", "\t", "\\"} & set(free.text)


def test_end_of_text_ends_a_text_unless_told_otherwise():
    generator = make(CHAR)
    for seed in range(30):
        (on,) = heard(generator, ["a"], sampling(max_new_tokens=20, stop_at_end_of_text=True), seed)
        (off,) = heard(generator, ["a"], sampling(max_new_tokens=20), seed)
        if on.finish == "end_of_text":
            assert off.tokens[: len(on.tokens) + 1] == [*on.tokens, CHAR.end_of_text]
            assert "<|endoftext|>" in off.text and on.text == off.text[: off.text.index("<|endoftext|>")]
            break
    else:
        raise AssertionError("no text ended")


def test_logprobs_are_of_the_tokens_that_are_returned():
    (done,) = heard(make(CHAR), ["a"], sampling(top_logprobs=2))
    assert [entry.token for entry in done.logprobs] == done.tokens
    assert all(len(entry.top) == 2 and entry.logprob <= entry.top[0][1] <= 0 for entry in done.logprobs)


def test_beam_search_gives_the_best_first():
    generator, search = make(CHAR), {"temperature": 0, "beams": 4, "samples": 3}
    done = heard(generator, ["a", "b"], sampling(**search))
    assert [(c.prompt, c.sample) for c in done] == [(prompt, n) for prompt in "ab" for n in range(3)]
    assert done[0].score >= done[1].score >= done[2].score
    assert heard(generator, ["a"], sampling(length_penalty=3.0, **search))[0].score > 10 * done[0].score  # nearer to 0


def test_what_the_generator_is_told_reaches_the_loop(monkeypatch):
    told = {}
    monkeypatch.setattr(module, "decode", lambda *args, **kwargs: told.update(kwargs) or iter(()))
    given = {"cache": False, "past_context": "stop", "prefill_chunk": 7, "lookup": 3}
    make(CHAR, **given).generate([], sampling=sampling(), seed=1)
    assert told == {}
    make(CHAR, **given).generate(["a", "b"], sampling=sampling(samples=2, top_logprobs=5), seed=[4, 5])
    expected = given | {"seed": [4, 5], "samples": range(2), "top_logprobs": 5, "max_new_tokens": 12, "end_of_text": None}
    assert told.items() >= expected.items()


@pytest.mark.parametrize("after", [0, 3])
def test_ctrl_c_returns_what_was_made_until_then(after, monkeypatch):
    generator, settings = make(CHAR), sampling(max_new_tokens=20, samples=2)
    whole = heard(generator, ["a", "b"], settings)
    decode = module.decode

    def interrupted(*args, **kwargs):
        for step, rows in enumerate(decode(*args, **kwargs)):
            if step == after:
                raise KeyboardInterrupt
            yield rows

    monkeypatch.setattr(module, "decode", interrupted)
    done = heard(generator, ["a", "b"], settings)
    assert [c.finish for c in done] == ["interrupted"] * 4
    assert [c.tokens for c in done] == [c.tokens[:after] for c in whole]


def test_a_prompt_that_cannot_be_used_is_refused():
    generator = make(CHAR, past_context="stop")
    with pytest.raises(TokenizerError, match="Z"):
        generator.encode("aZ")
    assert generator.encode(" \n ") == [CHAR.end_of_text]  # white space it does not know, and nothing else
    assert generator.encode("") == [CHAR.end_of_text]
    with pytest.raises(UserError, match=r"a prompt of 30 tokens does not fit .* 24\n.*past_context=slide"):
        generator.generate(["a" * 30], sampling=sampling(), seed=1)
    assert len(make(CHAR).generate(["a" * 30], sampling=sampling(), seed=1)[0].tokens) == 12
    full = generator.generate(["a" * 20], sampling=sampling(), seed=1)[0]
    assert full.finish == "context" and len(full.tokens) == 5
