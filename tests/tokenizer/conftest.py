"""Texts that the tokenizer tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mirror_text() -> Callable[[str], str]:
    """Reads a file of the data mirror, every character as it is there; skips the test where it cannot."""

    def read(name: str) -> str:
        folder = os.environ.get("GPT2X_MIRROR")
        if not folder:
            pytest.skip("GPT2X_MIRROR, the folder with the data sets, is not set")
        file = Path(folder, name)
        if not file.is_file():
            pytest.skip(f"GPT2X_MIRROR has no {name}")
        return file.read_bytes().decode("utf-8")

    return read


@pytest.fixture(scope="session")
def story() -> str:
    """A few hundred words with repetitions, and some characters outside ASCII."""
    sentences = [
        "The lantern keeper's daughter walked the harbour wall, counting boats: one, two, three.",
        "“It's late,” said the keeper; they'll be walking home — or they won't.\n",
        "In 1842 the harbour had 17 boats, 3 cafés and one naïve gull.",
        "Walking, walking, the daughter counted the lanterns:  red lantern, green lantern, red lantern.\n\n",
    ]
    return " ".join(sentences[i % 4] for i in (0, 1, 2, 3, 3, 1, 0, 2, 0, 3, 2, 1, 1, 0))
