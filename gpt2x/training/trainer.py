"""The one training loop.

It knows no task and no file format: a task gives it losses and metrics, the data its batches, the checkpoints a
place for its state. All that changes from one step to the next is in the weights, the optimizer, the average
and a handful of counters; everything random is a function of the step (streams.py, data/windows.py). That is why
a run that goes on from a checkpoint gives the same bits as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from gpt2x.data.batch import Batch
from gpt2x.device import Device
from gpt2x.errors import UserError
from gpt2x.task.base import Task
from gpt2x.tracking.console import Progress
from gpt2x.tracking.tracker import Tracker
from gpt2x.training.checkpoint import Checkpoint, Checkpoints
from gpt2x.training.ema import EMA
from gpt2x.training.flops import flops_per_token
from gpt2x.training.frozen import FrozenStates
from gpt2x.training.optimizer import before_step
from gpt2x.training.schedule import Schedule, SequenceWarmup
from gpt2x.training.signals import StopRequest
from gpt2x.training.streams import RandomStreams

log = logging.getLogger(__name__)
_OTHER_BITS = "the sums of matrix products are rounded in another order, so the bits will differ"


class NonFiniteError(UserError):
    """The loss or the gradient became infinite or not a number."""


@dataclass
class TrainState:
    """The counters of a run; with the tensors of a checkpoint they are all of its state."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0  # estimated operations of training (flops.py), and those of an optimizer that has many (muon.py)
    best: float | None = None  # lowest value of the task's metric so far, and the step it was reached at
    best_step: int | None = None
    evaluations_since_best: int = 0
    evaluated_step: int = -1  # the last step that was evaluated: an evaluation cut short is made again
    metrics: dict[str, Any] = field(default_factory=dict)  # the last evaluation's
    unlogged: dict[str, Any] = field(default_factory=dict)  # this step's row, while its evaluation is still to come
    smoothed: float | None = None  # training loss, an average over about the last 20 steps, and its lowest value so far
    lowest: float | None = None
    diverged: bool = False
    pruned: bool = False  # given up by a search
    finished: bool = False


class Trainer:
    """Trains `model` on `data` for `task`; see TrainerConfig for the settings.

    `saved` are the names of the parameters that a checkpoint holds: all that the model cannot be made without.
    `sample(step)` makes texts to look at after an evaluation. `prune(step, metrics)`, if there is one, is told the
    metrics of each evaluation and says whether to give the run up. `identity` is saved with every
    checkpoint (see Checkpoint.require), and so is the task's `about`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        task: Task,
        data: Any,
        saved: set[str],
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        device: Device,
        streams: RandomStreams,
        tracker: Tracker,
        checkpoints: Checkpoints,
        progress: Progress,
        sample: Callable[[int], list[dict[str, str]]],
        identity: dict[str, Any],
        max_steps: int,
        accumulate: int,
        sequence_warmup: SequenceWarmup | None,
        clip_norm: float | None,
        ema_decay: float | None,
        eval_every: int,
        eval_train_windows: int,
        patience: int | None,
        divergence: float | None,
        checkpoint_every: int | None,
        log_every: int,
        prune: Callable[[int, dict[str, Any]], bool] | None = None,
    ):
        self.model, self.task, self.data, self.optimizer, self.schedule = model, task, data, optimizer, schedule
        self.device, self.streams, self.tracker, self.checkpoints = device, streams, tracker, checkpoints
        self.progress, self.sample, self.identity = progress, sample, identity
        self.max_steps, self.accumulate, self.clip_norm = max_steps, accumulate, clip_norm
        self.sequence_warmup = sequence_warmup
        self.eval_every, self.eval_train_windows, self.patience = eval_every, eval_train_windows, patience
        self.divergence, self.prune = divergence, prune
        self.checkpoint_every, self.log_every = checkpoint_every or eval_every, log_every
        self.parameters = {name: p for name, p in model.named_parameters() if name in saved}
        self.frozen: FrozenStates | None = None
        self.peak_lrs = [group["lr"] for group in optimizer.param_groups]
        self.forward = device.prepare(model)
        self.flops_per_token = functools.cache(functools.partial(flops_per_token, model))
        self.ema = EMA(self.parameters, ema_decay) if ema_decay is not None else None
        self.state = TrainState()
        self.saved = (-1, -1)  # the step of the newest checkpoint, and the last evaluation it knows of
        self.interval = [0, 0.0]  # tokens and seconds of training since the last logged row
        self.step_seconds = self.optimizer_seconds = 0.0  # of all steps since this began, and of the optimizer in them

    def fit(self, stop: StopRequest, frozen: FrozenStates | None = None) -> TrainState:
        """Train to the end, or until `stop`; the state and its checkpoint are then saved either way.

        `frozen` adds to each batch what the frozen layers make of it.
        """
        self.frozen = frozen
        self._clock = time.perf_counter()
        state = self.state
        row = state.unlogged
        with stop.deferred(), self.progress.running(state.step):
            while True:
                due = state.step % self.eval_every == 0 or state.step == self.max_steps
                if due and state.evaluated_step != state.step and not stop():
                    row = row | (self._evaluate(stop) or {})
                cut_short = due and state.evaluated_step != state.step
                state.unlogged = row if cut_short else {}
                if row and not cut_short:
                    how_far = {"step": state.step, "tokens": state.tokens, "seconds": self._seconds(), "flops": state.flops}
                    self.tracker.log(how_far | row)
                state.finished = not cut_short and (state.pruned or self._is_over(state.evaluations_since_best))
                if state.finished and state.step < self.max_steps:
                    log.info("stopping early: %s", self._why())
                new_best = self.checkpoints.keep_best and state.best_step == state.step
                if state.step and (stop() or state.finished or new_best or state.step % self.checkpoint_every == 0):
                    self._save()
                if stop() or state.finished:
                    return state
                row = self.train_step()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take up all of a checkpoint's state. Raises UserError if its weights are another model's."""
        saved = checkpoint.state
        if saved["threads"] != self.device.threads:
            log.warning("%d threads now, %d before: %s", self.device.threads, saved["threads"], _OTHER_BITS)
        if saved.get("kernels", False) != self.device.kernels:  # before there were any it was not noted
            now, before = ("compiled code", "torch alone") if self.device.kernels else ("torch alone", "compiled code")
            log.warning("%s now, %s before: %s", now, before, _OTHER_BITS)
        weights = checkpoint.tensors("model")
        if {n: w.shape for n, w in weights.items()} != {n: p.shape for n, p in self.parameters.items()}:
            raise UserError(f"{checkpoint.folder} holds the weights of another model than this configuration's")
        with torch.no_grad():
            for name, weight in weights.items():
                self.parameters[name].copy_(weight)
        moments = checkpoint.tensors("optimizer")
        state_of = {}
        for name, parameter in self.parameters.items():
            prefix = f"{name}/"
            state_of[parameter] = {key[len(prefix) :]: t for key, t in moments.items() if key.startswith(prefix)}
        index = {p: i for i, p in enumerate(p for group in self.optimizer.param_groups for p in group["params"])}
        whole = self.optimizer.state_dict()
        whole["state"] = {index[p]: s for p, s in state_of.items() if s}
        self.optimizer.load_state_dict(whole)
        if self.ema is not None:
            self.ema.load(checkpoint.tensors("ema"))
        self.state = TrainState(**saved["trainer"])
        self.state.finished = self.state.pruned = self.state.diverged = False  # the end may have been moved
        self.saved = (self.state.step, self.state.evaluated_step)

    # -- one step -------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, Any]:
        """Take one optimizer step; returns the row to log, empty on most steps."""
        state, started = self.state, time.perf_counter()
        multiplier = self.schedule(state.step)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * multiplier
        self.model.train()
        self.streams.seed_dropout(state.step)
        first = state.step * self.accumulate
        batches = [self.data.train_batch(first + i) for i in range(self.accumulate)]
        if self.sequence_warmup is not None and state.step < self.sequence_warmup.steps:
            batches = [batch.first(self.sequence_warmup(state.step)) for batch in batches]
        batches = list(map(self._ready, batches))
        weight, tokens = sum(batch.weight for batch in batches), sum(batch.tokens for batch in batches)
        loss = 0.0
        for batch in batches:
            with self.device.autocast():
                # Divided by the weight of all micro-batches, so that their sum is the mean over the whole step.
                share = self.task.loss(self.forward, batch) / weight
            share.backward()
            loss += share.item()
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            if self.divergence is None:
                self._give_up(loss, norm, batches)
            state.diverged = True  # and the step is not taken
            return {}
        if self.clip_norm is not None and norm > self.clip_norm:
            torch._foreach_mul_(gradients, self.clip_norm / norm)
        before_step(self.optimizer, state.step, tokens)
        optimizing = time.perf_counter()
        self.optimizer.step()
        self.optimizer_seconds += time.perf_counter() - optimizing
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(state.step)
        state.step += 1
        state.tokens += tokens
        state.flops += sum(batch.tokens * self.flops_per_token(batch.inputs.shape[1]) for batch in batches)
        state.flops += getattr(self.optimizer, "flops", 0.0)
        self._watch(loss)
        seconds = time.perf_counter() - started
        self.step_seconds += seconds
        self.interval[0] += tokens
        self.interval[1] += seconds
        speed = self.interval[0] / self.interval[1]
        self.progress.step(state.step, loss, speed)
        if state.step % self.log_every and state.step != self.max_steps:
            return {}
        self.interval = [0, 0.0]
        lr = self.optimizer.param_groups[0]["lr"]
        return {"train/loss": loss, "lr": lr, "grad_norm": norm, "tokens_per_s": speed}

    def _ready(self, batch: Batch) -> Batch:
        """The batch on the device, with what is known of it from the frozen layers."""
        batch = batch.to(self.device.torch_device)
        return batch if self.frozen is None else self.frozen(batch)

    def _watch(self, loss: float) -> None:
        """Note the step's loss, and whether it has left where it was for good."""
        state = self.state
        state.smoothed = loss if state.smoothed is None else 0.95 * state.smoothed + 0.05 * loss
        state.lowest = state.smoothed if state.lowest is None else min(state.lowest, state.smoothed)
        state.diverged = self.divergence is not None and state.smoothed > self.divergence * state.lowest

    def _give_up(self, loss: float, norm: float, batches: list) -> None:
        last = self.checkpoints.steps()
        good = f"the last good checkpoint is {self.checkpoints.folder / f'step-{last[-1]:08d}'}" if last else "none was saved"
        raise NonFiniteError(
            f"the training diverged at step {self.state.step + 1}: loss {loss}, gradient norm {norm}\n"
            f"  batch: {'; '.join(batch.description for batch in batches)}\n"
            f"  The step was not taken; {good}.\n"
            f"  Try a lower optimizer.lr, more schedule.warmup_steps, or a smaller trainer.clip_norm."
        )

    # -- evaluation -----------------------------------------------------------------------------------------

    def _evaluate(self, stop: StopRequest) -> dict[str, Any] | None:
        """Metrics of whole splits with what training keeps as its result; None, and nothing noted, if stopped.

        Always the validation split, part of the training split if asked for, and at the run's end the test split.
        """
        state = self.state
        self.model.eval()
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            row = self._measure("val", "val", None, stop)
            value = row.get(self.task.metric) if row else None
            better = value is not None and (state.best is None or value < state.best)
            since_best = 0 if better else state.evaluations_since_best + (value is not None)
            if row is not None and self.eval_train_windows:
                row = self._measure("train", "train_eval", self.eval_train_windows, stop, row)
            if row is not None and self._is_over(since_best):
                row = self._measure("test", "test", None, stop, row)
            if row is None:
                return None
            state.evaluated_step, state.metrics, state.evaluations_since_best = state.step, row, since_best
            if better:
                state.best, state.best_step = value, state.step
            if self.prune is not None:
                state.pruned = self.prune(state.step, row) and not self._is_over(since_best)
            self.progress.evaluated(state.step, row, best=better)
            for sample in self.sample(state.step):
                self.tracker.sample({"step": state.step} | sample)
                self.progress.sampled(sample)
        return row

    def _measure(
        self, split: str, name: str, maximum: int | None, stop: StopRequest, row: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """`row` with the metrics of a split, called name/..., added to it; None if stopped."""
        row = row or {}
        if not self.data.n_eval(split):
            return row
        batches = map(self._ready, self.data.eval_batches(split, maximum))
        with self.device.autocast():
            metrics = self.task.evaluate(self.model, batches, stop)
        return None if metrics is None else row | {f"{name}/{key}": value for key, value in metrics.items()}

    # -- ending and saving ----------------------------------------------------------------------------------

    def _is_over(self, evaluations_since_best: int) -> bool:
        hopeless = self.patience is not None and evaluations_since_best >= self.patience
        return hopeless or self.state.diverged or self.state.step >= self.max_steps

    def _why(self) -> str:
        """Why the run is over before its last step."""
        if self.state.pruned:
            return f"the search gives this run up, as others were better at step {self.state.step}"
        if self.state.diverged:
            return "the training loss has diverged"
        return f"no better {self.task.metric} for {self.patience} evaluations"

    def _seconds(self) -> float:
        """Seconds of work so far, those before a resume included."""
        now = time.perf_counter()
        self.state.seconds += now - self._clock
        self._clock = now
        return round(self.state.seconds, 3)

    def _save(self) -> None:
        now = (self.state.step, self.state.evaluated_step)
        if self.saved == now:
            return
        self._seconds()
        moments = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    moments[f"{name}/{key}"] = value
        tensors = {"model": self.parameters, "optimizer": moments}
        if self.ema is not None:
            tensors["ema"] = self.ema.average
        state = {
            "step": self.state.step,
            "best_step": self.state.best_step,
            "trainer": asdict(self.state),
            "identity": self.identity,
            "about": self.task.about,
            "threads": self.device.threads,
            "kernels": self.device.kernels,
        }
        self.checkpoints.save(state, tensors)
        self.saved = now
