"""From tokens to text as they come: whole characters only, and an end at the first stop string.

Tokens go in one at a time; what comes out can be shown at once, for nothing that follows will change it.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from gpt2x.tokenizer.base import Tokenizer


class TextStream:
    """The text of a row of tokens, up to the first place where a string of `stop` begins.

    Two things are held back until more tokens decide what they are: the first bytes of a character, and text that may
    be the beginning of a stop string. Bytes that can no longer become a character are U+FFFD.

    text     what has been given out so far
    stopped  whether a stop string was found; the text ends before it, and further tokens are ignored
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.text = ""
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, token: int) -> str:
        """The text that can be shown now that `token` is known; often empty."""
        return self._give(self._decoder.decode(self._tokenizer.decode_bytes([token])))

    def close(self) -> str:
        """What was held back: no more tokens come."""
        return self._give(self._decoder.decode(b"", final=True), final=True)

    def _give(self, new: str, final: bool = False) -> str:
        if self.stopped:
            return ""
        held = self._held + new
        for end in range(len(held)):
            rest = held[end:]
            self.stopped = any(rest.startswith(stop) for stop in self._stop)
            if self.stopped or (not final and any(stop.startswith(rest) for stop in self._stop)):
                break
        else:
            end = len(held)
        self._held = held[end:]
        self.text += held[:end]
        return held[:end]
