"""How a CPU trains a model fastest: with how many threads, and through compiled code or torch alone. Measured once, then kept.

`settle` is given the configuration of a run and fills in device.threads and device.kernels where they are null. It times
training steps of a GPT that is the run's but for having one block, on a batch of the run's, or on as much of one as takes but
a moment. What it finds is kept in the cache for later runs of the same block, batch and processor.

All settings compute the same but for the order of sums, and so for the last bits. What cannot be kept is not used: beside
other programs, or without a cache, a run has the usual setting (the physical cores, compiled code where it applies). From the
first undisturbed measurement on, runs have the same bits, on this machine and with this cache. Elsewhere, settings that are
about as fast may come out either way, and nothing tells what the neighbours of a virtual machine take: what must repeat to the
bit is pinned by device.threads and device.kernels, as the run's config.yaml has them.

A run keeps to the usual setting where one block of one length is not what a step is: tables and instructions, whose rows
have lengths of their own, a finetune= that changes blocks or trains some alone, torch.compile, a GPU. Where compiled code does
not apply to the block, threads alone are compared.
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

import torch
from filelock import FileLock

from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import TrainConfig
from gpt2x.device import default_threads, given_threads, has_bf16, usable_cpus, waited
from gpt2x.files import read_json, write_atomic
from gpt2x.model import fused
from gpt2x.model.compiler import KernelError, compiled, processor, source
from gpt2x.model.gpt import GPT
from gpt2x.training.config import FullConfig

_SECONDS = 1.0  # of measuring, and the round that is begun then
_ROUNDS = 3  # at least
_MARGIN = 1.1  # times so much longer than the fastest: no difference, as noise may be as large
_WAITED = 0.1  # of the time: threads that wait longer for cores are not alone with them
_PATIENCE = 30  # seconds, while others measure
_VOCAB = 256  # of the GPT, which is given random tokens
_ELSEWHERE = ("n_layer", "init", "ngram_embeddings")  # settings of a model that change nothing of one block's time


class Setting(NamedTuple):
    threads: int
    kernels: bool

    def __str__(self) -> str:
        return f"device.threads={self.threads} device.kernels={str(self.kernels).lower()}"


class Found(NamedTuple):
    """Seconds a block by setting, the usual one first; those in bf16 with the best one, where measured; and the day."""

    seconds: dict[Setting, float]
    bf16: float | None
    day: str

    @property
    def best(self) -> Setting:
        """The first setting that is about as fast as the fastest."""
        enough = _MARGIN * min(self.seconds.values())
        return next(setting for setting, seconds in self.seconds.items() if seconds < enough)


class Disturbed(Exception):
    """What was measured tells of other programs, too."""


def settle(config: TrainConfig, goes_on: bool = False) -> list[str]:
    """Fill in config.device.threads and .kernels, where they are null; returns what there is to say of it.

    One that `goes_on` is not measured: what is open in its own configuration is of a time without compiled code.
    """
    device, said = config.device, []
    able = device.type == "cpu" and not device.compile and not goes_on
    threads = [device.threads or default_threads()]
    kernels = [able if device.kernels is None else device.kernels]
    alike = config.task.data_kind == "text" and isinstance(config.finetune, FullConfig)  # all of a step's blocks
    if able and alike and None in (device.threads, device.kernels):
        if device.threads is None and given_threads() is None:
            fewer = [2**i for i in reversed(range(threads[0].bit_length()))]
            threads = list(dict.fromkeys([*threads, *fewer, usable_cpus()]))
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
        try:
            found, when = _found(config, settings)
            best = found.best
            said += _told(found, when)
        except (Disturbed, OSError, NotImplementedError) as error:  # the last: a file system has no locks
            said.append(f"nothing that can be kept ({error}), so it is the usual {best}")
    device.threads, device.kernels = best
    return said


def compiled_blocks(gpt: GPT) -> int:
    """How many blocks compiled code computes, where rows are one text each."""
    return sum(fused.applies(block, gpt.wte.weight[None, :1], plain=gpt.alibi is None) for block in gpt.h)


def _found(config: TrainConfig, settings: list[Setting]) -> tuple[Found, str]:
    """What is known of these settings, and since when. Runs that start together measure in turn.

    Raises Disturbed, and OSError where the cache cannot be written or others measure for too long.
    """
    path, key = Path(config.paths.cache) / "calibration.json", _key(config, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), timeout=_PATIENCE):
        kept = read_json(path)
        if (found := _read(kept.get(key), settings)) is not None:
            return found, f"on {found.day}"
        found = measure(config, settings)
        rows = [[*setting, seconds] for setting, seconds in found.seconds.items()]
        kept[key] = {"seconds": rows, "bf16": found.bf16, "day": found.day}
        write_atomic(path, json.dumps(kept, indent=1) + "\n")
        return found, "just now"


def _key(config: TrainConfig, settings: list[Setting]) -> str:
    """What decides how long a block takes."""
    block = {name: value for name, value in asdict(config.model).items() if name not in _ELSEWHERE}
    device = asdict(config.device) | {"threads": None, "kernels": None}
    machine = [processor(), usable_cpus(), torch.__version__, source("train")]
    key = json.dumps([settings, block, config.data.batch_size, device, machine], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def _read(entry: Any, settings: list[Setting]) -> Found | None:
    """A kept entry; None where there is none, or none that makes sense."""
    try:
        rows = {Setting(threads, kernels): float(seconds) for threads, kernels, seconds in entry["seconds"]}
        bf16 = None if entry["bf16"] is None else float(entry["bf16"])
        seconds = {setting: rows[setting] for setting in settings if setting in rows or setting == settings[0]}
        return Found(seconds, bf16, str(entry["day"]))
    except (KeyError, TypeError, ValueError):
        return None


def _told(found: Found, when: str) -> list[str]:
    both = len({setting.kernels for setting in found.seconds}) > 1  # else the blocks may be torch's either way
    times = []
    for (threads, kernels), seconds in sorted(found.seconds.items(), key=lambda item: item[1]):
        how = f"{threads} thread{'s' * (threads > 1)}" + both * (", compiled" if kernels else ", torch alone")
        times.append(f"{seconds * 1e3:.3g} ms with {how}")
    best = found.seconds[found.best]
    said = [f"{when}, a block: {'; '.join(times)}; so it is {found.best}"]
    if found.bf16 is not None and best >= _MARGIN * found.bf16:
        faster = f"{best / found.bf16:.1f} times as fast, with products of numbers of 8 significant bits"
        said.append(f"{found.bf16 * 1e3:.3g} ms a block in bf16, {faster}: device=cpu_bf16")
    return said


def measure(
    config: TrainConfig,
    settings: list[Setting],
    clock: Callable[[], float] = time.perf_counter,
    waited: Callable[[], float] = waited,
) -> Found:
    """Time a block with these settings, in rounds that take all in turn, but for those that are twice too slow in the first;
    the medians. No random stream moves on. Raises Disturbed where other programs took cores meanwhile.

    `clock` tells the seconds, and `waited` those that threads waited for cores.
    """
    device = instantiate(config.device)  # which sets torch's switches
    with torch.random.fork_rng(devices=[]):
        gpt = instantiate(replace(config.model, n_layer=1, ngram_embeddings=[]), vocab_size=_VOCAB)
        tokens_BT = torch.randint(_VOCAB, (config.data.batch_size, config.model.context_length))
        if any(setting.kernels for setting in settings):
            fused.accelerate(gpt, config.paths.cache)
        if not compiled_blocks(gpt):
            settings = [setting for setting in settings if setting.kernels == settings[0].kernels]

        def step(setting: Setting, tokens_BT: torch.Tensor, device: Any = device) -> tuple[float, float]:
            """The seconds of the second of two, and those waited: in the first threads start, and memory is mapped."""
            torch.set_num_threads(setting.threads)
            gpt.fused = gpt.h[0].fused = setting.kernels
            for _ in range(2):
                gpt.zero_grad()
                before, begun = waited(), clock()
                with device.autocast():
                    loss = gpt.loss(tokens_BT, tokens_BT) / tokens_BT.numel()
                loss.backward()
                taken = clock() - begun, waited() - before
            return taken

        T, n = tokens_BT.shape[1], 64
        while n < tokens_BT.numel() and step(settings[0], tokens_BT[: max(1, n // T), :n])[0] < _SECONDS / 50:
            n *= 2
        part_BT, begun = tokens_BT[: max(1, n // T), :n], clock()
        steps = {setting: [step(setting, part_BT)] for setting in settings}
        slow = 2 * min(seconds for ((seconds, _),) in steps.values())
        steps = {setting: taken for setting, taken in steps.items() if taken[0][0] < slow or setting == settings[0]}
        while len(steps[settings[0]]) < _ROUNDS or clock() - begun < _SECONDS:
            for setting, taken in steps.items():
                taken.append(step(setting, part_BT))
        if any(statistics.median(idle / seconds for seconds, idle in taken) > _WAITED for taken in steps.values()):
            raise Disturbed("other programs took cores meanwhile")
        medians = {setting: statistics.median(seconds for seconds, _ in taken) for setting, taken in steps.items()}
        found = Found(medians, None, time.strftime("%Y-%m-%d"))
        if config.device.precision == "fp32" and has_bf16("cpu"):
            rounded = instantiate(replace(config.device, precision="bf16"))
            found = found._replace(bf16=statistics.median(step(found.best, part_BT, rounded)[0] for _ in range(_ROUNDS)))
        return found
