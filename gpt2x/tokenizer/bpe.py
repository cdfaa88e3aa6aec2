"""Byte pairs learned from a corpus (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with
Subword Units"; on bytes instead of characters, as in Radford et al. 2019).

Learning starts with the 256 bytes and repeats one step: join the pair of neighbours that is most
frequent into a new token, everywhere. Pairs never reach across words (byte_level.PATTERN).
"""

from __future__ import annotations

import base64
import heapq
import logging
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from gpt2x.tokenizer.byte_level import PATTERN, ByteLevelTokenizer

log = logging.getLogger(__name__)


class BPETokenizer(ByteLevelTokenizer):
    """The 256 bytes (id = the byte), then the joins in the order in which they were learned, then end-of-text."""

    kind = "bpe"

    @classmethod
    def from_corpus(cls, texts: Iterable[str], vocab_size: int = 1024, max_bytes: int = 10_000_000) -> BPETokenizer:
        """Learn from the first `max_bytes` bytes of `texts`, reading no further than that.

        Words do not reach from one of `texts` into the next. If no pair is left that occurs twice,
        learning ends early: `vocab_size` is then smaller than asked for, and a warning says so.
        """
        if vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257 (256 bytes and end-of-text), not {vocab_size}")
        tokenizer = cls(learn(count_words(texts, max_bytes), vocab_size - 1))
        if tokenizer.vocab_size < vocab_size:
            log.warning(
                "the text is too small for tokenizer.vocab_size=%d: no pair of tokens is left that occurs twice, so the "
                "vocabulary has %d",
                vocab_size,
                tokenizer.vocab_size,
            )
        return tokenizer

    def to_record(self) -> dict[str, Any]:
        return {"tokens": [base64.b64encode(token).decode("ascii") for token in self.tokens]}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> BPETokenizer:
        return cls([base64.b64decode(token, validate=True) for token in record["tokens"]])


def count_words(texts: Iterable[str], max_bytes: int) -> Counter[bytes]:
    """How often each word occurs in the first `max_bytes` UTF-8 bytes of `texts`."""
    import regex

    words: Counter[str] = Counter()
    left = max_bytes
    for text in [texts] if isinstance(texts, str) else texts:
        data = text.encode("utf-8", errors="replace")
        if len(data) > left:
            text = data[:left].decode("utf-8", errors="ignore")  # no half character at the cut
        words.update(match[0] for match in regex.finditer(PATTERN, text))
        left -= len(data)
        if left <= 0:
            break
    return Counter({word.encode("utf-8", errors="replace"): count for word, count in words.items()})


def learn(words: Mapping[bytes, int], size: int) -> list[bytes]:
    """The 256 bytes and the joins learned from `words` (word -> how often it occurs): at most `size` tokens.

    Each step joins the most frequent pair of ids; among equals the one with the smallest left id,
    then the smallest right id, so that the result depends on the words and their counts alone. A run
    "aaa" has the pair (a, a) twice, though only the first can be joined. A pair that occurs once is
    never joined.

    A step touches only the places where its pair occurs, however long the words are: about a second
    for the words of 5 MB of English.
    """
    tokens = [bytes([byte]) for byte in range(256)]

    # All words in one row, a wall (-1) before, between and after them. A place is the index of a
    # token's first byte; `before` and `after` link it to its neighbours as the places between fall away.
    row, weight = array("i", [-1]), array("q", [0])
    for word, count in words.items():
        row.extend(word)
        row.append(-1)
        weight.extend([count] * len(word) + [0])
    before = array("i", range(-1, len(row) - 1))
    after = array("i", range(1, len(row) + 1))

    counts: defaultdict[tuple[int, int], int] = defaultdict(int)
    places: defaultdict[tuple[int, int], array[int]] = defaultdict(lambda: array("i"))
    for place in range(1, len(row) - 1):
        pair = row[place], row[place + 1]
        if -1 not in pair:
            counts[pair] += weight[place]
            places[pair].append(place)

    # One entry a pair. A pair's count only falls once its step of birth is over, so an entry is never
    # too low: one that is out of date is put back with its true count when it comes to the top.
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < size:
        priority, pair = heapq.heappop(heap)
        count = counts[pair]
        if count < 2:
            continue
        if count != -priority:
            heapq.heappush(heap, (-count, pair))
            continue

        left, right = pair
        new = len(tokens)
        tokens.append(tokens[left] + tokens[right])
        born = set()
        for place in places.pop(pair):  # from left to right: a pair's places are all noted in one sweep, in order
            second = after[place]
            if row[place] != left or row[second] != right:
                continue  # an earlier join took one of the two
            weight_here, previous, following = weight[place], before[place], after[second]
            row[place], row[second] = new, -1
            after[place], before[following] = following, place
            for old, fresh, at in (
                ((row[previous], left), (row[previous], new), previous),
                ((right, row[following]), (new, row[following]), place),
            ):
                if -1 not in fresh:
                    counts[old] -= weight_here
                    counts[fresh] += weight_here
                    places[fresh].append(at)
                    born.add(fresh)
        del counts[pair]
        for fresh in born:
            heapq.heappush(heap, (-counts[fresh], fresh))
    return tokens
