"""What frozen layers make of each example, computed once instead of in every epoch.

Below the first trained block nothing changes during a run, and without dropout nothing there is random: the states that
enter that block are a function of the example alone. They are computed before the first step, in batches that do not
depend on the order of training (so a resumed run has the same bits), and kept in memory or in a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

from gpt2x.data.batch import Batch
from gpt2x.data.examples import ExampleData
from gpt2x.device import Device
from gpt2x.files import replacing
from gpt2x.model.classifier import parts
from gpt2x.model.gpt import Below
from gpt2x.tracking.console import size
from gpt2x.training.finetune import frozen_blocks

log = logging.getLogger(__name__)


class FrozenStates:
    """The states that enter block `n` for every token of `data`, float32.

    `path` is the file that keeps them, for this run and later ones with the same frozen weights, data and device; None:
    they are kept in memory.
    """

    def __init__(self, model: nn.Module, n: int, data: ExampleData, device: Device, path: Path | None):
        self.n, self.device = n, device
        self.starts, total = {}, 0
        for split, examples in data.splits.items():
            ends = total + np.cumsum([len(example.tokens) for example in examples], dtype=np.int64)
            self.starts[split] = np.concatenate([[total], ends])
            total = int(self.starts[split][-1])
        shape = (total, parts(model)[0].wte.embedding_dim)
        if path is not None and path.exists() and path.stat().st_size == 4 * shape[0] * shape[1] + 32:
            self.states = torch.from_file(str(path), shared=False, size=shape[0] * shape[1]).view(shape)
            with open(path, "rb") as file:
                file.seek(-32, os.SEEK_END)
                expected = file.read()
            if self._digest() == expected:
                log.info("frozen   states of %d blocks found in %s", n, path)
                return
            log.warning("%s is damaged (its sha256 is another); it is computed again", path)
        if path is None:
            self.states = torch.empty(shape)
            self._compute(model, data)
            return
        with replacing(path) as partial:
            self.states = torch.from_file(str(partial), shared=True, size=shape[0] * shape[1]).view(shape)
            self._compute(model, data)
            with open(partial, "ab") as file:
                file.write(self._digest())

    def _digest(self) -> bytes:
        """The sha256 that closes the file."""
        return hashlib.sha256(self.states.numpy()).digest()

    def __call__(self, batch: Batch) -> Batch:
        """The batch with what the frozen layers make of it; padding is zeros."""
        starts = self.starts[batch.split]
        states_BTC = torch.zeros(*batch.inputs.shape, self.states.shape[1])
        for b, row in enumerate(batch.rows):
            states_BTC[b, : starts[row + 1] - starts[row]] = self.states[starts[row] : starts[row + 1]]
        return dataclasses.replace(batch, below=Below(self.n, states_BTC.to(batch.inputs.device)))

    @torch.no_grad()
    def _compute(self, model: nn.Module, data: ExampleData) -> None:
        from tqdm import tqdm

        gpt, _ = parts(model)
        with tqdm(total=len(self.states), unit="tok", unit_scale=True, desc="frozen layers", disable=None, delay=1) as bar:
            for split in data.splits:
                for batch in data.eval_batches(split):
                    batch = batch.to(self.device.torch_device)
                    with self.device.autocast():
                        below = gpt.below(batch.inputs, self.n, batch.documents)
                    for b, row in enumerate(batch.rows):
                        start, end = self.starts[split][row : row + 2]
                        self.states[start:end] = below.states_BTC[b, : end - start]
                    bar.update(batch.tokens)


def frozen_states(
    model: nn.Module, data: object, device: Device, *, keep: str, limit_gb: float, epochs: float, folder: Path
) -> FrozenStates | None:
    """The cached states of the frozen layers where that is worth it, else None; either way it is said why.

    keep      "auto": in memory if they fit in half of what is free, else in a file; "memory", "disk"; "off"
    limit_gb  the most they may take, in 10^9 bytes
    """
    n, (gpt, _) = frozen_blocks(model), parts(model)
    if n == 0 or keep == "off":
        return None
    if not isinstance(data, ExampleData):
        reason = "text is read in windows that are never the same twice"
    elif gpt.dropout:
        reason = f"model.dropout={gpt.dropout} makes them random"
    elif epochs <= 1:
        reason = "no example comes twice"
    else:
        tokens = sum(len(example.tokens) for examples in data.splits.values() for example in examples)
        needed = tokens * gpt.wte.embedding_dim * 4
        if keep == "auto":
            keep = "memory" if needed < psutil.virtual_memory().available / 2 else "disk"
        path = None if keep == "memory" else folder / f"{_key(model, n, data, device)}.bin"
        if needed > limit_gb * 1e9:
            reason = f"they would take {size(needed)}, more than trainer.frozen_cache_gb={limit_gb:g}"
        elif path is not None and not path.exists() and needed > _free(folder):  # a full disk would end the process
            reason = f"they would take {size(needed)}, more than is free in {folder}"
        else:
            where = "in memory" if keep == "memory" else f"in {folder}"
            log.info("frozen   the states of the %d lower blocks are computed once and kept %s: %s", n, where, size(needed))
            return FrozenStates(model, n, data, device, path)
    log.info("frozen   the states of the %d lower blocks are computed anew each time: %s", n, reason)
    return None


def _free(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free


def _key(model: nn.Module, n: int, data: ExampleData, device: Device) -> str:
    """What decides the states: the frozen weights below block n, the tokens, and how they are computed."""
    gpt, _ = parts(model)
    computed = f"{device} {torch.__version__} {data.eval_batch_size} {gpt.h[0].attn.attend.__name__} {gpt.fused}"
    digest = hashlib.sha256(f"{n} {gpt.shape} {data.fingerprint} {computed}".encode())
    for module in (*gpt.embeddings, *gpt.h[:n]):
        for parameter in module.parameters():
            digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:24]
