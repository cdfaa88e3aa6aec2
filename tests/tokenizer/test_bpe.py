"""Byte pairs learned here, against a learner and an encoder that do nothing cleverly."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2x.tokenizer.bpe import BPETokenizer, count_words, learn

# GPT-2's pattern as its paper's code has it, not as ours spells it.
WORDS = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")
FEW = st.text("ab c", max_size=40)  # few letters: many ties, runs and overlaps


def join(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    out: list[int] = []
    for i in word:
        if out and (out[-1], i) == pair:
            out[-1] = new
        else:
            out.append(i)
    return out


def naive_merges(words: list[bytes], count: int) -> list[tuple[int, int]]:
    """Learn by counting every pair of the whole corpus again before each join."""
    corpus, merges = [list(word) for word in words], []
    for new in range(256, 256 + count):
        pairs = Counter(pair for word in corpus for pair in itertools.pairwise(word))
        if not pairs or max(pairs.values()) < 2:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        corpus = [join(word, best, new) for word in corpus]
        merges.append(best)
    return merges


def naive_tokens(merges: list[tuple[int, int]]) -> list[bytes]:
    tokens = [bytes([b]) for b in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def naive_encode(text: str, merges: list[tuple[int, int]]) -> list[int]:
    """Encode as the joins were learned: each in turn, through the whole word."""
    ids = []
    for match in WORDS.finditer(text):
        word = list(match[0].encode())
        for new, pair in enumerate(merges, 256):
            word = join(word, pair, new)
        ids += word
    return ids


def words_of(text: str) -> list[bytes]:
    return [match[0].encode() for match in WORDS.finditer(text)]


def test_learns_what_the_naive_learner_learns(story):
    merges = naive_merges(words_of(story), 200)
    assert len(merges) > 100
    tokenizer = BPETokenizer.from_corpus([story], vocab_size=257 + len(merges))
    assert list(tokenizer.tokens) == naive_tokens(merges)
    assert tokenizer.encode(story).tolist() == naive_encode(story, merges)


def test_learns_what_the_naive_learner_learns_from_real_text(mirror_text):
    text = mirror_text("the-verdict.txt")[:6000]
    assert learn(Counter(words_of(text)), 256 + 60) == naive_tokens(naive_merges(words_of(text), 60))


@settings(max_examples=300, deadline=None)
@given(FEW, FEW, st.integers(0, 30))
@example("aaaaa aaaa aaa", "aaaaaaa", 30)
@example("ababababab abab", "babab", 30)
def test_tiny_alphabets(corpus, text, joins):
    merges = naive_merges(words_of(corpus), joins)
    tokenizer = BPETokenizer(learn(Counter(words_of(corpus)), 256 + joins))
    assert list(tokenizer.tokens) == naive_tokens(merges)
    assert tokenizer.encode(text).tolist() == naive_encode(text, merges)


def test_the_stated_order_of_ties():
    # ab and cd both occur twice: the smaller left id wins. Then bc, bd (same left): the smaller right id.
    assert learn({b"cd": 2, b"ab": 2}, 258)[256:] == [b"ab", b"cd"]
    assert learn({b"bd": 2, b"bc": 2}, 258)[256:] == [b"bc", b"bd"]
    assert learn({b"aaa": 1}, 257)[256:] == [b"aa"]  # two overlapping pairs count as two
    assert learn({b"ab": 1, b"cd": 2}, 300)[256:] == [b"cd"]  # once is not enough


@pytest.fixture(scope="module")
def tokenizer(story):
    return BPETokenizer.from_corpus([story], vocab_size=370)


def test_layout(tokenizer):
    assert tokenizer.kind == "bpe" and tokenizer.vocab_size == 370 and tokenizer.end_of_text == 369
    assert tokenizer.tokens[:256] == tuple(bytes([b]) for b in range(256))
    lengths = tokenizer.token_lengths()
    assert lengths.shape == (370,) and lengths.dtype == np.int64
    assert lengths[-1] == 0 and (lengths[:256] == 1).all() and (lengths[256:-1] >= 2).all()


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example("")
@example("the <|endoftext|> lantern")
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_text not in ids
    assert tokenizer.token_lengths()[ids].sum() == len(text.encode())
    assert tokenizer.encode_bytes(text.encode()).tolist() == ids.tolist()


@settings(deadline=None)
@given(st.binary(max_size=60))
@example(b"\xed\xa0\x80 \xff lantern \xc3")  # a surrogate in UTF-8's clothes, a byte that never occurs, half a character
@example("\udc80".encode("utf-8", "surrogatepass"))
def test_any_bytes_come_back(tokenizer, data):
    ids = tokenizer.encode_bytes(data)
    assert ids.dtype == np.int32
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.token_lengths()[ids].sum() == len(data)


@settings(deadline=None)
@given(st.lists(st.integers(0, 369), max_size=20), st.integers(0, 20))
def test_the_text_of_a_prefix_is_a_prefix_of_the_text(tokenizer, ids, cut):
    whole = tokenizer.decode_bytes(ids)
    assert tokenizer.decode_bytes(ids[:cut]) + tokenizer.decode_bytes(ids[cut:]) == whole
    assert tokenizer.decode(ids) == whole.decode("utf-8", errors="replace")


def test_longer_vocabularies_begin_with_shorter_ones(story, tokenizer):
    shorter = BPETokenizer.from_corpus([story], vocab_size=300)
    assert shorter.tokens == tokenizer.tokens[:299]
    assert len(shorter.encode(story)) > len(tokenizer.encode(story))


def test_too_little_text_ends_early_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="gpt2x"):
        small = BPETokenizer.from_corpus(["abab abab"], vocab_size=1000)
    assert small.tokens[256:] == (b"ab", b"abab") and small.vocab_size == 259
    assert "vocab_size=1000" in caplog.text and "259" in caplog.text

    caplog.clear()
    assert BPETokenizer.from_corpus(["abab abab"], vocab_size=259).vocab_size == 259
    assert BPETokenizer.from_corpus(["whatever"], vocab_size=257).vocab_size == 257
    assert caplog.text == ""

    assert BPETokenizer.from_corpus([], vocab_size=300).vocab_size == 257
    with pytest.raises(ValueError, match="at least 257"):
        BPETokenizer.from_corpus(["abab"], vocab_size=256)


def test_only_max_bytes_are_used_and_no_more_is_read():
    def pieces():
        yield "abab "
        yield "cdcd "
        raise AssertionError("read on after max_bytes")

    assert count_words(pieces(), 7) == {b"abab": 1, b" ": 1, b"cd": 1}
    assert count_words(pieces(), 10) == {b"abab": 1, b" ": 2, b"cdcd": 1}
    assert count_words(["aé"], 2) == {b"a": 1}  # not half a character
    assert count_words("one text", 99) == count_words(["one text"], 99)


def test_words_end_where_a_text_ends():
    assert count_words(["walk", "ing"], 99) == {b"walk": 1, b"ing": 1}


def test_a_long_word_does_not_slow_learning_down():
    # Genomes, base64, some scripts: one word of the whole text. Quadratic learning would take hours.
    word = np.random.default_rng(0).choice(list(b"ACGT"), 100_000).astype(np.uint8).tobytes()
    tokens = learn({word: 1}, 400)
    assert len(tokens) == 400
    ids = BPETokenizer(tokens).encode_bytes(word)
    assert len(ids) < 40_000 and BPETokenizer(tokens).decode_bytes(ids) == word


def test_same_result_in_every_process(story):
    program = (
        "import sys; from gpt2x.tokenizer.bpe import BPETokenizer;"
        "print(BPETokenizer.from_corpus([sys.stdin.read()], vocab_size=370).fingerprint)"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=story.encode(),
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONUTF8": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout.decode()
        for seed in ("0", "1", "4242")
    }
    assert len(prints) == 1


def test_order_of_texts_and_words_does_not_matter(story):
    texts = story.split("\n")
    one, other = (BPETokenizer.from_corpus(order, vocab_size=350) for order in (texts, texts[::-1]))
    assert one.fingerprint == other.fingerprint


def test_fingerprint_tells_tokenizers_apart(tokenizer):
    swapped = [*tokenizer.tokens[:-2], tokenizer.tokens[-1], tokenizer.tokens[-2]]
    assert BPETokenizer(tokenizer.tokens).fingerprint == tokenizer.fingerprint
    assert BPETokenizer(swapped).fingerprint != tokenizer.fingerprint
    assert BPETokenizer(tokenizer.tokens[:-1]).fingerprint != tokenizer.fingerprint
    same_bytes = [BPETokenizer([*tokenizer.tokens[:256], *pair]) for pair in ((b"ab", b"cde"), (b"abc", b"de"))]
    assert same_bytes[0].fingerprint != same_bytes[1].fingerprint


@pytest.mark.parametrize("tokens", [[b"a"], [bytes([b]) for b in range(256)] + [b"ab", b"ab"]])
def test_impossible_vocabularies_are_refused(tokens):
    with pytest.raises(ValueError, match="every byte|twice"):
        BPETokenizer(tokens)
