"""The weights in a folder of Hugging Face's, in whichever form: what there is, and each tensor when it is wanted.

model.safetensors    mapped, a tensor at a time; model.safetensors.index.json says where each is if there are several files
pytorch_model.bin    torch's own form, and likewise its index. torch is told to read tensors alone: such a file could hold
                     anything, code too, and is refused if it does
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2x.interop.huggingface_tokenizer import read_object
from gpt2x.interop.pretrained import PretrainedError

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
KINDS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Stored(NamedTuple):
    """A tensor in a file: what it is like, and what reads it."""

    file: Path
    shape: tuple[int, ...]
    kind: str  # of numbers, as safetensors calls it
    load: Callable[[], Tensor]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        if self.shape != shape or self.kind not in KINDS.values():
            problem = f"is {self.kind} {self.shape}, and the model of config.json needs floating-point numbers {shape}"
            raise PretrainedError(f"{self.file}: {name} {problem}")


def open_weights(path: Path) -> dict[str, Stored]:
    """All tensors in the folder by their names there; none is read yet."""
    found = next((path / name for name in FILES if (path / name).is_file()), None)
    if found is None:
        raise PretrainedError(f"{path}: has no weights: none of {', '.join(FILES)} is there")
    if found.suffix != ".json":
        return _open_file(found)
    places = read_object(found).get("weight_map")
    names = places.values() if isinstance(places, dict) else [None]
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise PretrainedError(f"{found}: weight_map does not say in which file of this folder each tensor is")
    tensors: dict[str, Stored] = {}
    for name in sorted(set(names)):
        if not (path / name).is_file():
            raise PretrainedError(f"{path / name}: no such file, and {found.name} speaks of it")
        tensors |= _open_file(path / name)
    for name, file in places.items():
        if name not in tensors or tensors[name].file.name != file:
            raise PretrainedError(f"{path / file}: lacks {name}, which is there as {found.name} says")
    return tensors


def _open_file(file: Path) -> dict[str, Stored]:
    if file.suffix == ".safetensors":
        try:
            opened = safe_open(file, "pt")
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise PretrainedError(f"{file}: torn, or no safetensors file ({error})") from None
        return {
            name: Stored(file, tuple(part.get_shape()), part.get_dtype(), partial(_tensor_in, file, name))
            for name, part in parts.items()
        }
    try:
        opened = _TorchFile(file)
    except Exception as error:  # of many kinds, by where it is torn
        raise PretrainedError(f"{file}: torn, or holds more than tensors, which could run code: it is not read") from error
    held = opened.held
    if not isinstance(held, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in held.values()):
        raise PretrainedError(f"{file}: not a state dict, names and their tensors")
    return {
        name: Stored(file, tuple(tensor.shape), KINDS.get(tensor.dtype, str(tensor.dtype)), partial(opened.tensor, name))
        for name, tensor in held.items()
    }


def _tensor_in(file: Path, name: str) -> Tensor:
    """A tensor that is mapped by itself: what was read of the file leaves the memory with it."""
    with safe_open(file, "pt") as opened:
        return opened.get_tensor(name)


class _TorchFile:
    """A file of torch's own form, `held` in memory. What is read of a mapped one stays there until it is mapped anew, which
    is done whenever it has become too much."""

    MOST = 2**25  # bytes; mapping takes some milliseconds

    def __init__(self, file: Path):
        self.file, self.read = file, 0
        try:
            self.held, self.mapped = self._load(mmap=True), True
        except RuntimeError:  # an older form, which cannot be mapped; what is torn fails again
            self.held, self.mapped = self._load(), False

    def tensor(self, name: str) -> Tensor:
        if self.mapped and self.read > self.MOST:
            self.held, self.read = self._load(mmap=True), 0
        tensor = self.held[name]
        self.read += tensor.nbytes
        return tensor.detach()

    def _load(self, **settings: bool) -> Any:
        return torch.load(self.file, map_location="cpu", weights_only=True, **settings)
