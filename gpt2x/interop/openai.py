"""GPT-2 as OpenAI published it: a TensorFlow checkpoint, read and written without TensorFlow.

hparams.json                     the shape
model.ckpt.index                 the names and places of the variables,
model.ckpt.data-00000-of-00001   and their bytes (tensorflow.py)
encoder.json, vocab.bpe          the tokenizer (vocabulary.py)
checkpoint                       tells TensorFlow what is there
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2x.files import check_replaceable, replacing_folder, shown
from gpt2x.interop.pretrained import Description, Pretrained, PretrainedError, parameter_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2x.model.gpt import GPT
    from gpt2x.tokenizer.base import Tokenizer

SIZES = {
    "124M": dict(n_layer=12, n_head=12, n_embd=768),
    "355M": dict(n_layer=24, n_head=16, n_embd=1024),
    "774M": dict(n_layer=36, n_head=20, n_embd=1280),
    "1558M": dict(n_layer=48, n_head=25, n_embd=1600),
}
N_VOCAB, N_CTX = 50_257, 1_024  # of every size

HPARAMS, INDEX, DATA = "hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"
_SOURCES = (  # OpenAI's own, and the mirror of LLMs-from-scratch, the book
    "https://openaipublic.blob.core.windows.net/gpt-2/models/{size}/{file}",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2/{size}/{file}",
)
# Bytes and sha256, where they are known. The bytes of the data follow from the shape: four a parameter.
_PUBLISHED: dict[tuple[str, str], tuple[int, str | None]] = {
    ("124M", HPARAMS): (90, "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318"),
    ("124M", INDEX): (5_215, "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687"),
    ("124M", DATA): (497_759_232, "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118"),
    ("355M", HPARAMS): (91, None),
    ("355M", INDEX): (10_399, None),
    ("355M", DATA): (1_419_292_672, None),
    ("774M", DATA): (3_096_120_320, None),
    ("1558M", DATA): (6_230_444_800, None),
}
_FETCHED = (HPARAMS, INDEX, DATA)
_ENCODER, _JOINS = "encoder.json", "vocab.bpe"
FILES = {*_FETCHED, _ENCODER, _JOINS, "checkpoint"}  # what `write` writes
_CHECKPOINT = 'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'


def described(size: str) -> Description:
    """The model that OpenAI published under this size, without any file."""
    shape = SIZES[size] | dict(context_length=N_CTX, tied_head=True)
    return Description(Path(), "openai", shape, N_VOCAB, "gpt2")


def describe(path: str | Path) -> Description:
    """The model in folder `path`, by hparams.json and the tokenizer's files. Raises PretrainedError."""
    path = Path(path)
    file, names = path / HPARAMS, ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
    try:
        hparams = json.loads(file.read_text(encoding="utf-8"))
        vocab_size, context_length, n_embd, n_head, n_layer = numbers = [hparams[name] for name in names]
    except FileNotFoundError:
        raise PretrainedError(f"{file}: no such file; it says what shape the model has") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PretrainedError(f"{file}: expected a JSON object with {', '.join(names)} ({error!r})") from None
    if not all(type(number) is int and number > 0 for number in numbers) or n_embd % n_head:
        raise PretrainedError(f"{file}: such a model cannot be: {json.dumps(hparams)}")
    shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, context_length=context_length, tied_head=True)
    return Description(path, "openai", shape, vocab_size, _tokenizer_kind(path, vocab_size))


def read(path: str | Path) -> Pretrained:
    """The model in folder `path`, mapped into memory. Raises PretrainedError."""
    from gpt2x.interop.tensorflow import Bundle
    from gpt2x.interop.vocabulary import read_vocabulary
    from gpt2x.tokenizer.gpt2 import GPT2Tokenizer

    about = describe(path)
    bundle = Bundle(about.path / "model.ckpt")
    names = {}
    for ours, shape in parameter_shapes(about).items():
        names[ours] = theirs = _their_name(ours)
        if theirs not in bundle.variables:
            raise PretrainedError(f"{bundle.index}: it has no variable {theirs}, which a model of {HPARAMS} must have")
        variable, expected = bundle.variables[theirs], (1, *shape[::-1]) if _is_matrix(ours) else shape
        if (variable.shape, variable.dtype) != (expected, "<f4"):
            problem = f"{theirs} is {variable.dtype} {variable.shape}, and after {HPARAMS} must be float32 {expected}"
            raise PretrainedError(f"{bundle.index}: {problem}")
    # An optimizer keeps what it knows of a variable under that variable's name, and the count of steps elsewhere.
    more = sorted(name for name in set(bundle) - set(names.values()) if name.startswith("model/"))
    if more := [name for name in more if name.rpartition("/")[0] not in bundle.variables]:
        raise PretrainedError(
            f"{bundle.index}: a model of {HPARAMS} has no {', '.join(more[:3])}; the two do not belong together"
        )

    def read_tokenizer() -> Tokenizer:
        gpt2s = about.tokenizer == "gpt2"
        tokenizer = GPT2Tokenizer() if gpt2s else read_vocabulary(about.path / _ENCODER, about.path / _JOINS)
        if tokenizer.vocab_size > about.vocab_size:
            problem = f"its tokenizer has {tokenizer.vocab_size:,} tokens, and the model of {HPARAMS} {about.vocab_size:,}"
            raise PretrainedError(f"{about.path}: {problem}")
        return tokenizer

    return Pretrained(about, _Tensors(bundle, names), read_tokenizer)


def write(folder: str | Path, model: GPT, tokenizer: Tokenizer) -> None:
    """Write `model` and `tokenizer` to `folder` as OpenAI's own are, to the byte as TensorFlow would, atomically.

    Raises UserError for what that form cannot hold: a model that is no GPT-2, a head that is not tied, a tokenizer
    that is not byte-level; and where the folder holds anything but such files.
    """
    from gpt2x.interop.tensorflow import write_bundle
    from gpt2x.interop.vocabulary import vocabulary_texts
    from gpt2x.model.variants import why_not_gpt2

    if (why := why_not_gpt2(model)) is not None:
        raise PretrainedError(f"OpenAI's format: {why}")
    if model.lm_head is not None:
        problem = "the model's head is a matrix of its own, and OpenAI's is the token embedding"
        raise PretrainedError(f"OpenAI's format: {problem}; train one with model.tied_head=true")
    check_replaceable(folder, FILES)
    encoder, joins = vocabulary_texts(tokenizer)
    n_embd, n_layer = model.wte.embedding_dim, len(model.h)
    numbers = dict(n_vocab=model.vocab_size, n_ctx=model.context_length, n_embd=n_embd, n_head=model.n_head, n_layer=n_layer)
    texts = {HPARAMS: json.dumps(numbers, indent=2) + "\n", _ENCODER: encoder, _JOINS: joins, "checkpoint": _CHECKPOINT}
    with replacing_folder(folder) as temporary:
        write_bundle(temporary / "model.ckpt", _Variables(model))
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")


def fetch(size: str, *, cache: str | Path, mirror: str | Path | None) -> Path:
    """The folder of what OpenAI published under this size: mirror/gpt2/SIZE if it is there, else cache/openai/SIZE.

    What that lacks is fetched, from OpenAI or, where that fails, from another source. The tokenizer, which is the same for
    every size, comes with gpt2x. Raises UserError where a file cannot be had or is not what it should be.
    """
    from gpt2x.data.fetch import Unreachable
    from gpt2x.data.fetch import fetch as fetch_file

    mirrored = None if mirror is None else Path(mirror) / "gpt2" / size
    kept = Path(cache) / "openai" / size
    if not any(folder is not None and (folder / DATA).is_file() for folder in (mirrored, kept)):
        n_bytes = 4 * sum(math.prod(shape) for shape in parameter_shapes(described(size)).values())
        print(f"fetching OpenAI's {size}, {n_bytes / 1e6:,.0f} MB, into {shown(kept)}", file=sys.stderr)

    def fetched(file: str, mirror: Path | None) -> Path:
        n_bytes, sha256 = _PUBLISHED.get((size, file), (None, None))
        urls = [source.format(size=size, file=file) for source in _SOURCES]
        try:
            return fetch_file(*urls, file=file, sha256=sha256, n_bytes=n_bytes, cache=kept, mirror=mirror, pinned_by=None)
        except Unreachable as error:
            remedy = f"Without a network, put {', '.join(_FETCHED)} into any folder and give init.path=FOLDER,"
            places = f"or into FOLDER/gpt2/{size} and give paths.mirror=FOLDER (or GPT2X_MIRROR=FOLDER in the environment)."
            raise Unreachable(f"init.size={size}: {error.reason}", f"{remedy}\n  {places}") from None

    folders = {fetched(file, mirrored).parent for file in _FETCHED}
    if len(folders) > 1:  # not all of the mirror's are there, or what they should be: then none of them is used
        folders = {fetched(file, None).parent for file in _FETCHED}
    return folders.pop()


class _Tensors(Mapping[str, "Tensor"]):
    """The variables of a bundle by our names and as our model has them."""

    def __init__(self, bundle: Mapping[str, Any], names: dict[str, str]):
        self.bundle, self.names = bundle, names

    def __getitem__(self, name: str) -> Tensor:
        import torch

        tensor = torch.from_numpy(self.bundle[self.names[name]])
        return tensor.squeeze(0).T if _is_matrix(name) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class _Variables(Mapping[str, Any]):
    """The parameters of a model by OpenAI's names and as theirs has them."""

    def __init__(self, model: GPT):
        self.parameters = dict(model.named_parameters())
        self.names = {_their_name(name): name for name in self.parameters}

    def __getitem__(self, name: str) -> Any:
        ours = self.names[name]
        tensor = self.parameters[ours].detach().float().cpu()
        return (tensor.T.unsqueeze(0) if _is_matrix(ours) else tensor).numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _is_matrix(name: str) -> bool:
    """Whether a parameter of ours is the weight of a linear layer, which OpenAI keeps as (1, inputs, outputs)."""
    return re.search(r"\.c_\w+\.weight$", name) is not None


def _their_name(name: str) -> str:
    """OpenAI's name of a parameter of ours: h.0.attn.c_attn.weight is model/h0/attn/c_attn/w."""
    module, _, own = re.sub(r"^h\.(\d+)", r"h\1", name).rpartition(".")
    if module in ("wte", "wpe"):
        return f"model/{module}"
    end = {"bias": "b", "weight": "w" if _is_matrix(name) else "g"}[own]
    return f"model/{module.replace('.', '/')}/{end}"


def _tokenizer_kind(path: Path, vocab_size: int) -> str:
    from gpt2x.interop.vocabulary import is_gpt2

    files = [path / _ENCODER, path / _JOINS]
    there = [file.is_file() for file in files]
    if all(there):
        return "gpt2" if is_gpt2(*files) else "bpe"
    if vocab_size != N_VOCAB or any(there):
        missing = files[there.index(False)]
        raise PretrainedError(f"{missing}: no such file; it is a part of the tokenizer")
    return "gpt2"
