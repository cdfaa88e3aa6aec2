"""How a CPU trains a model fastest: with how many threads, and through compiled code or torch alone. Measured once, then kept.

`settle` is given the configuration of a run and fills in device.threads and device.kernels where they are null. It times
training steps of a GPT that is the run's but for having one block, on a batch of the run's, or on as much of one as takes but
a moment. What it finds is kept in the cache for later runs of the same block, batch and processor, so that a configuration has
the same bits each time. All settings compute the same in the same precision, but for the order of sums.

Other programs may keep cores busy, and many threads then wait for each other: what is best beside them holds for this run,
and is not kept.

A run keeps to the usual setting (the physical cores, compiled code where it applies) where one block of one length is not what
a step is: tables and instructions, whose rows have lengths of their own, a finetune= that changes blocks or trains some alone,
torch.compile, a GPU. Where compiled code does not apply to the block, threads alone are compared.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from filelock import FileLock

from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import TrainConfig
from gpt2x.device import cpus, default_threads, given_threads, has_bf16, usable_cpus
from gpt2x.files import read_json, sha256_file, write_atomic
from gpt2x.model import fused
from gpt2x.model.compiler import KernelError, compiled, processor
from gpt2x.training.config import FullConfig

_SECONDS = 1.0  # of measuring, and the round that is begun then
_MARGIN = 1.1  # times so much longer than the fastest: no difference, as noise may be as large
_BUSY = 0.1  # of the CPUs' time: more that other programs take disturbs what threads gain
_VOCAB = 256  # of the GPT, which is given random tokens


class Setting(NamedTuple):
    threads: int
    kernels: bool

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads > 1)}, {'compiled' if self.kernels else 'torch alone'}"


class Found(NamedTuple):
    """Seconds a block by setting, the usual one first; those in bf16 with the best one, where that was measured; the share of
    the CPUs' time that other programs took meanwhile; and the day."""

    seconds: dict[Setting, float]
    bf16: float | None
    others: float
    day: str

    @property
    def best(self) -> Setting:
        """The first setting that is about as fast as the fastest."""
        enough = _MARGIN * min(self.seconds.values())
        return next(setting for setting, seconds in self.seconds.items() if seconds < enough)


def settle(config: TrainConfig) -> list[str]:
    """Fill in config.device.threads and .kernels, where they are null; returns what there is to say of it.

    A run that is gone on with is never measured: its own configuration says both, or is of a time without compiled code.
    """
    device, said = config.device, []
    threads = [device.threads or default_threads()]
    kernels = [config.resume is None if device.kernels is None else device.kernels]
    if config.resume is None and None in (device.threads, device.kernels) and _is_measurable(config):
        if device.threads is None and given_threads() is None:
            threads = list(dict.fromkeys([*threads, 1, usable_cpus()]))
        if device.kernels is None:
            kernels = [True, False]
        try:
            if device.kernels is not False:
                compiled("train", config.paths.cache)
        except KernelError as error:
            kernels = [False]
            said.append(f"torch alone, without the code for this processor: {error}")
    settings = [Setting(t, k) for t in threads for k in kernels]
    best = settings[0]
    if len(settings) > 1:
        found, new = _found(config, settings)
        best = found.best
        said += _told(found, new)
    device.threads, device.kernels = best
    return said


def _is_measurable(config: TrainConfig) -> bool:
    """Whether all of a step's blocks do alike, on a CPU."""
    alike = config.task.data_kind == "text" and isinstance(config.finetune, FullConfig)
    return alike and config.device.type == "cpu" and not config.device.compile


def _found(config: TrainConfig, settings: list[Setting]) -> tuple[Found, bool]:
    """What is known of these settings, and whether it was measured just now. Runs that start together measure in turn."""
    path, key = Path(config.paths.cache) / "calibration.json", _key(config, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        kept = read_json(path)
        if (found := _read(kept.get(key), settings)) is not None:
            return found, False
        found = measure(config, settings)
        if not _is_disturbed(found):
            rows = [[*setting, seconds] for setting, seconds in found.seconds.items()]
            kept[key] = {"seconds": rows, "bf16": found.bf16, "others": found.others, "day": found.day}
            write_atomic(path, json.dumps(kept, indent=1) + "\n")
        return found, True


def _is_disturbed(found: Found) -> bool:
    """Whether another number of threads might be the best when other programs are gone."""
    return found.others > _BUSY and len({setting.threads for setting in found.seconds}) > 1


def _key(config: TrainConfig, settings: list[Setting]) -> str:
    """What decides how long a block takes."""
    block = {name: value for name, value in asdict(config.model).items() if name != "n_layer"}
    device = asdict(config.device) | {"threads": None, "kernels": None}
    machine = [processor(), usable_cpus(), torch.__version__, sha256_file(Path(fused.__file__).with_name("train.c"))]
    key = json.dumps([settings, block, config.data.batch_size, device, machine], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def _read(entry: Any, settings: list[Setting]) -> Found | None:
    """A kept entry; None where there is none, or none that makes sense."""
    try:
        rows = {Setting(threads, kernels): float(seconds) for threads, kernels, seconds in entry["seconds"]}
        bf16 = None if entry["bf16"] is None else float(entry["bf16"])
        seconds = {setting: rows[setting] for setting in settings if setting in rows or setting == settings[0]}
        return Found(seconds, bf16, float(entry["others"]), str(entry["day"]))
    except (KeyError, TypeError, ValueError):
        return None


def _told(found: Found, new: bool) -> list[str]:
    best, said = found.best, []
    others = [f"{seconds * 1e3:.3g} ms with {setting}" for setting, seconds in found.seconds.items() if setting != best]
    times = "; ".join([f"{found.seconds[best] * 1e3:.3g} ms a block with {best}", *others])
    pinned = f"device.threads={best.threads} device.kernels={str(best.kernels).lower()}"
    said.append(f"{'just now' if new else f'on {found.day}'}: {times}; pinned by {pinned}")
    if new and _is_disturbed(found):
        said.append(f"while other programs took {found.others:.0%} of the CPUs' time: the next run measures again")
    if found.bf16 is not None and found.seconds[best] >= _MARGIN * found.bf16:
        faster = f"{found.seconds[best] / found.bf16:.1f} times as fast, with products rounded to 8 bits"
        said.append(f"{found.bf16 * 1e3:.3g} ms a block in bf16, {faster}: device=cpu_bf16")
    return said


def measure(config: TrainConfig, settings: list[Setting], clock: Callable[[], float] = time.perf_counter) -> Found:
    """Time a block with these settings, in rounds that take all in turn; the medians. No random stream moves on.

    `clock` tells the seconds.
    """
    device = instantiate(config.device)  # which sets torch's switches
    with torch.random.fork_rng(devices=[]):
        gpt = instantiate(replace(config.model, n_layer=1, ngram_embeddings=[]), vocab_size=_VOCAB)
        tokens_BT = torch.randint(_VOCAB, (config.data.batch_size, config.model.context_length))
        if any(setting.kernels for setting in settings):
            fused.accelerate(gpt, config.paths.cache)
        if not fused.applies(gpt.h[0], gpt.wte(tokens_BT[:1]), plain=gpt.alibi is None):
            settings = [setting for setting in settings if setting.kernels == settings[0].kernels]

        def step(setting: Setting, tokens_BT: torch.Tensor, device: Any = device) -> float:
            """The seconds that the second of two takes: in the first threads start, and memory is mapped."""
            torch.set_num_threads(setting.threads)
            gpt.fused = gpt.h[0].fused = setting.kernels
            for _ in range(2):
                gpt.zero_grad()
                begun = clock()
                with device.autocast():
                    loss = gpt.loss(tokens_BT, tokens_BT) / tokens_BT.numel()
                loss.backward()
                seconds = clock() - begun
            return seconds

        T, n = tokens_BT.shape[1], 64
        while n < tokens_BT.numel() and step(settings[0], tokens_BT[: max(1, n // T), :n]) < _SECONDS / 50:
            n *= 2
        part_BT, rounds = tokens_BT[: max(1, n // T), :n], []
        psutil.cpu_percent(percpu=True)  # the next call tells of the time since this one
        begun, own = clock(), time.process_time()
        while not rounds or clock() - begun < _SECONDS:
            rounds.append([step(setting, part_BT) for setting in settings])
        busy = psutil.cpu_percent(percpu=True)
        mine = (time.process_time() - own) / (clock() - begun)
        others = max(0.0, sum(busy[i] for i in cpus()) / 100 - mine) / len(cpus())
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        found = Found(dict(zip(settings, medians, strict=True)), None, round(others, 3), time.strftime("%Y-%m-%d"))
        if config.device.precision == "fp32" and has_bf16("cpu"):
            rounded = instantiate(replace(config.device, precision="bf16"))
            found = found._replace(bf16=statistics.median(step(found.best, part_BT, rounded) for _ in range(3)))
        return found
