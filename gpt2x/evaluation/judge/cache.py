"""Replies of judges that are kept, so that nothing is asked twice: one file a question, each written whole or not at all.

Several processes may read and write at the same time. A file is found by the hash of everything that the reply depends on:
which model is asked, in what way, and what.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gpt2x.files import read_json, write_atomic

_FORMAT = 1  # raise it when the same question would be asked in another way


class Cache:
    """The replies in `folder` to questions of the judge that `identity` describes, in plain JSON."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity = Path(folder), identity

    def path(self, messages: list[dict[str, str]], schema: dict[str, Any] | None) -> Path:
        """Where the reply to a question is kept."""
        asked = json.dumps([_FORMAT, self.identity, messages, schema])  # not sorted: a schema's order is part of it
        key = hashlib.sha256(asked.encode()).hexdigest()
        return self.folder / key[:2] / f"{key[2:]}.json"

    def get(self, messages: list[dict[str, str]], schema: dict[str, Any] | None) -> dict[str, Any]:
        """What was kept; empty if nothing was, or it is damaged."""
        return read_json(self.path(messages, schema))

    def put(self, messages: list[dict[str, str]], schema: dict[str, Any] | None, kept: dict[str, Any]) -> None:
        write_atomic(self.path(messages, schema), json.dumps(kept) + "\n")
