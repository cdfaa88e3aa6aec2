"""Models that other programs wrote, in our terms: what init=openai, init=hf and checkpoint=FOLDER read.

A folder comes in, OpenAI's (openai.py) or Hugging Face's (huggingface.py); out come its description, which needs no torch
and next to no time, and then its weights by our names. Each of the two modules has the functions `describe` and `read`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gpt2x.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2x.tokenizer.base import Tokenizer

KINDS = {"run": "a run", "openai": "a model of OpenAI's", "hf": "a model of Hugging Face's"}
_MARKS = {"run": ("config.yaml",), "openai": ("hparams.json", "model.ckpt.index"), "hf": ("config.json",)}  # any of these


class PretrainedError(UserError):
    """A folder or file of another program's that cannot be used; the message names it."""


@dataclass(frozen=True)
class Description:
    """What a folder's small files say of its model.

    path        the folder
    format      "openai" or "hf"
    model       the settings of GPTConfig that it decides: n_layer, n_head, n_embd, context_length, tied_head, and dropout
                where the files speak of it
    vocab_size  rows of the token embedding, which may be more than the tokenizer has tokens
    tokenizer   what the tokenizer is: "gpt2", OpenAI's own, "bpe", another one of bytes and their joins, or "char"
    labels      of a classifier: its classes, in the order of the head's outputs; None: it makes text
    """

    path: Path
    format: str
    model: dict[str, Any]
    vocab_size: int
    tokenizer: str
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Pretrained:
    """A model whose files are whole: every tensor that the description asks for is there, in the right shape.

    tensors         the parameters of our GPT by their names there, matrices as nn.Linear has them; beside them, of a
                    classifier, "score.weight" and, where its head has one, "score.bias". Each is read from the disk, or
                    mapped, when it is asked for, and is not kept: whoever wants it copies it.
    read_tokenizer  makes the tokenizer that the folder's files describe
    """

    about: Description
    tensors: Mapping[str, Tensor]
    read_tokenizer: Callable[[], Tokenizer]


def kind_of(path: str | Path) -> str | None:
    """Of which of the KINDS the model in a folder is, by the names of its files; None where there is none."""
    found = [kind for kind, files in _MARKS.items() if any(Path(path, file).is_file() for file in files)]
    return found[0] if found else None


def lacking(*kinds: str) -> str:
    """What is wrong with a folder that is of none of these kinds: "not the folder of a run (it has no config.yaml)"."""
    return "not the folder " + ", nor ".join(f"of {KINDS[kind]} (it has no {_MARKS[kind][0]})" for kind in kinds)


def describe(path: str | Path) -> Description:
    """The model in folder `path`, by its small files alone. Raises PretrainedError where it cannot be had or represented."""
    return _module(path).describe(Path(path))


def read(path: str | Path) -> Pretrained:
    """The model in folder `path`. Raises PretrainedError where a file is missing, torn or foreign, or cannot be represented."""
    return _module(path).read(Path(path))


def parameter_shapes(about: Description) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter that our GPT has for the model described."""
    n = about.model["n_embd"]
    shapes = {"wte.weight": (about.vocab_size, n), "wpe.weight": (about.model["context_length"], n)}
    linear = {"attn.c_attn": (3 * n, n), "attn.c_proj": (n, n), "mlp.c_fc": (4 * n, n), "mlp.c_proj": (n, 4 * n)}
    for i in range(about.model["n_layer"]):
        shapes |= {f"h.{i}.{norm}.{own}": (n,) for norm in ("ln_1", "ln_2") for own in ("weight", "bias")}
        shapes |= {f"h.{i}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"h.{i}.{name}.bias": shape[:1] for name, shape in linear.items()}
    shapes |= {"ln_f.weight": (n,), "ln_f.bias": (n,)}
    return shapes if about.model["tied_head"] else shapes | {"lm_head.weight": (about.vocab_size, n)}


def _module(path: str | Path) -> ModuleType:
    found = kind_of(path)
    if found not in ("openai", "hf"):
        raise PretrainedError(f"{path}: {lacking('openai', 'hf')}")
    return importlib.import_module({"openai": "gpt2x.interop.openai", "hf": "gpt2x.interop.huggingface"}[found])
