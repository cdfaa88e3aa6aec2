"""Settings of the data group."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from typing import ClassVar

from gpt2x.config.option import ConfigError, option

SPLITS = ("train", "val", "test")  # in the order of their places in the text


@dataclass(kw_only=True)
class TextConfig:
    """A corpus of plain UTF-8 text for a language model.

    It comes from one of: the package itself (`builtin`), a public address (`url`, kept in
    paths.cache and looked for first in paths.mirror), or the user's own disk (`path`).
    """

    kind: ClassVar[str] = "text"
    _target_: str = "gpt2x.data.text.TextCorpus"
    name: str = option("text", "what the corpus is called in logs and caches")
    builtin: str | None = option(None, "file shipped inside the package")
    url: str | None = option(None, "public address of the file")
    file: str | None = option(None, "its name in the cache and the mirror; null: the last part of the url")
    sha256: str | None = option(None, "pinned hash of the file; without one the first download's is remembered")
    path: str | None = option(
        None, "your own text: a file, a folder (its *.txt and *.md, recursively) or a glob", verbatim=True
    )
    strip: str | None = option(None, "gutenberg: drop Project Gutenberg's header and licence", choices=(None, "gutenberg"))
    separator: str | None = option(None, "string between documents; each document then ends with the end-of-text token")
    val_fraction: float = option(0.1, "share of the text, by position, held out for validation", minimum=0, below=1)
    test_fraction: float = option(0.0, "share of the text, its very end, measured once, when the run ends", minimum=0, below=1)
    batch_size: int = option(16, "windows in one micro-batch", minimum=1)
    eval_batch_size: int | None = option(
        None, "windows in one evaluation batch (null: batch_size); the result does not depend on it", minimum=1
    )
    stride: int | None = option(
        None, "tokens between the starts of windows; null: windows lie end to end, shifted anew each epoch", minimum=1
    )
    drop_last: bool = option(False, "end an epoch before its last, smaller batch instead of filling it from the next epoch")
    shuffle: bool = option(True, "visit the windows in a new random order each epoch")

    def check(self) -> None:
        sources = {k: getattr(self, k) for k in ("builtin", "url", "path") if getattr(self, k) is not None}
        if not sources:
            raise ConfigError("path", None, "no text given", "say where your text is, such as data=text data.path=notes.txt")
        if len(sources) > 1:
            raise ConfigError(
                "path", self.path, f"the corpus has several sources ({', '.join(sources)})", "use data=text for your own files"
            )
        for name in ("file", "sha256"):
            if self.url is None and getattr(self, name) is not None:
                raise ConfigError(name, getattr(self, name), "belongs to a text that is fetched from data.url; this one is not")
        if self.val_fraction + self.test_fraction >= 1:
            raise ConfigError(
                "test_fraction", self.test_fraction, f"with val_fraction={self.val_fraction} nothing is left to train on"
            )

    def check_available(self) -> None:
        """Raise ConfigError if the user's own text is not where `path` says."""
        path = os.path.expanduser(self.path or "")
        if self.path is not None and not os.path.exists(path) and not glob.glob(path, recursive=True):
            raise ConfigError("path", self.path, "no such file, folder or glob match", f"looked from {os.getcwd()}")
