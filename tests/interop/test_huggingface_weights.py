"""Files of tensors: what is read of them does not stay in memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from gpt2x.interop.huggingface_weights import _TorchFile, open_weights

COPY = """
import sys
from pathlib import Path
import torch
from gpt2x.device import peak_memory
from gpt2x.interop.huggingface_weights import open_weights
weights = open_weights(Path(sys.argv[1]))
copies = [torch.zeros(2000, 2000) for _ in weights]  # 160 megabytes, held from now on
before = peak_memory()
for copy, stored in zip(copies, weights.values()):
    copy.copy_(stored.load())
print(peak_memory() - before)
"""


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_copy_takes_little_more_memory_than_itself(tmp_path, file):
    tensors = {f"w{i}": torch.full((2000, 2000), float(i)) for i in range(10)}
    (save_file if file.endswith("safetensors") else torch.save)(tensors, tmp_path / file)
    done = subprocess.run([sys.executable, "-c", COPY, str(tmp_path)], capture_output=True, text=True)
    assert int(done.stdout) < 80e6, done.stderr


@pytest.mark.parametrize("form", [{}, {"_use_new_zipfile_serialization": False}], ids=["mapped", "older form"])
def test_a_file_of_torch_that_is_mapped_anew_is_the_same(tmp_path, monkeypatch, form):
    tensors = {f"w{i}": torch.full((8,), float(i)) for i in range(20)}
    torch.save(tensors, tmp_path / "pytorch_model.bin", **form)
    monkeypatch.setattr(_TorchFile, "MOST", 64)
    weights = open_weights(tmp_path)
    kept = {name: stored.load() for name, stored in weights.items()}  # whatever was mapped anew since
    assert all(torch.equal(kept[name], tensor) for name, tensor in tensors.items())
    assert all(torch.equal(weights[name].load(), tensor) for name, tensor in tensors.items())
