"""A training run from a configuration to a result: `train` reads as the list of what happens, in order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import TrainConfig
from gpt2x.config.trained import begun_with
from gpt2x.device import Device
from gpt2x.errors import UserError
from gpt2x.evaluation.run import measure
from gpt2x.files import shown
from gpt2x.generation.controls import Controls
from gpt2x.generation.generator import TextGenerator
from gpt2x.interop.pretrained import read as read_pretrained
from gpt2x.model.classifier import parts
from gpt2x.model.fused import accelerate
from gpt2x.model.lora import adapted_layers, base_hash
from gpt2x.task.base import Task
from gpt2x.task.config import InstructionTuningConfig
from gpt2x.task.template import load_template
from gpt2x.tokenizer import base as tokenizers
from gpt2x.tracking.console import Progress, clock, size
from gpt2x.tracking.description import code_version, description, summary
from gpt2x.tracking.tracker import RunFiles, Tracker, Trackers
from gpt2x.training.calibration import compiled_blocks, settle
from gpt2x.training.checkpoint import Checkpoint, Checkpoints
from gpt2x.training.config import MuonConfig, RangeTestConfig, RunInitConfig, ScratchConfig
from gpt2x.training.finetune import table
from gpt2x.training.frozen import FrozenStates, frozen_states
from gpt2x.training.init import locate
from gpt2x.training.load import new_model
from gpt2x.training.lr_range import plot_lr_range, read_lr_range
from gpt2x.training.muon import Muon
from gpt2x.training.plots import plot_classes, plot_loss
from gpt2x.training.run_folder import RunFolder
from gpt2x.training.schedule import SequenceWarmup
from gpt2x.training.signals import StopRequest
from gpt2x.training.streams import RandomStreams
from gpt2x.training.trainer import Trainer, TrainState

log = logging.getLogger(__name__)
_NEXT = {  # what one can do with a finished run of each kind
    "text": ["gpt2x-generate checkpoint={}"],
    "table": ["gpt2x-generate checkpoint={} interactive=true", "gpt2x-evaluate checkpoint={} evaluation=classification"],
    "instructions": ["gpt2x-generate checkpoint={} interactive=true", "gpt2x-evaluate checkpoint={} evaluation=rouge"],
}


@dataclass(frozen=True)
class Result:
    """A finished run; `metric` is its lowest validation loss, None if it has no validation data."""

    run_dir: Path
    metric: float | None
    state: TrainState


def train(
    config: TrainConfig,
    run_dir: Path,
    *,
    overrides: list[str] | None = None,
    sweep: str | None = None,
    prefix: str = "",
    prune: Callable[[int, dict[str, Any]], bool] | None = None,
) -> Result:
    """Train as `config` says, in the folder `run_dir`; with `config.resume`, go on with the run that is there.

    `overrides` and `sweep` (the sweep's name) only describe the run; `prefix` begins its lines on the console; `prune`
    may give it up (see Trainer). Raises UserError for what the user can mend, and SystemExit (130 or 143) after a signal,
    when everything is saved.
    """
    if config.resume is None:
        locate(config.init, cache=config.paths.cache, mirror=config.paths.mirror)
    with StopRequest() as stop, RunFolder(run_dir, config, overrides or [], prefix) as folder:
        log.info("run      %s", shown(run_dir))
        streams = RandomStreams(config.seed)
        corpus = instantiate(config.data, cache=config.paths.cache, mirror=config.paths.mirror)
        tokenizer = _tokenizer(config, corpus, run_dir)
        task = instantiate(config.task, tokenizer, corpus.about)
        data = task.batches(corpus, context_length=config.model.context_length, seed=streams.number("data"))
        checkpoints = Checkpoints(
            run_dir / "checkpoints",
            keep_last=config.trainer.keep_last,
            keep_best=config.trainer.keep_best,
            keep_every=config.trainer.keep_every,
        )
        checkpoint = checkpoints.recover() if config.resume is not None else None
        measured = settle(config, goes_on=checkpoint is not None)  # `begin` writes it down, so that a resumed run keeps to it
        device = instantiate(config.device)
        model = new_model(config, tokenizer, task, loaded_next=checkpoint is not None)
        device.kernels = device.kernels and accelerate(model, config.paths.cache)
        parts(model)[0].recompute = config.trainer.recompute
        optimizer = instantiate(config.optimizer, model)
        steps = config.trainer.max_steps or math.ceil(
            config.trainer.max_epochs * data.batches_per_epoch / config.trainer.accumulate
        )
        schedule = instantiate(config.schedule, total_steps=steps)
        if schedule.warmup_steps > steps:
            raise UserError(f"schedule.warmup_steps={schedule.warmup_steps} is longer than the run, which has {steps} steps")
        identity = {"tokenizer": tokenizer.fingerprint, "corpus": corpus.fingerprint}
        saved = dict(model.named_parameters())
        if adapted_layers(model):  # the adapter alone: the rest is the base's, and is there already
            identity["base"] = base_hash(model)
            saved = {name: parameter for name, parameter in saved.items() if parameter.requires_grad}
        if checkpoint is not None:
            checkpoint.require(identity)
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        folder.result |= {"parameters": sum(n for n, _ in sizes), "trained_parameters": sum(n for n, on in sizes if on)}
        folder.begin()
        log.info("data     %s", data)
        log.info("tokens   %s, %s in the vocabulary", tokenizer.kind, f"{tokenizer.vocab_size:,}")
        log.info("model    %s", model)
        if checkpoint is None and not isinstance(config.init, ScratchConfig):
            log.info("weights  begin as those of %s", shown(config.init.path))
        if isinstance(optimizer, Muon):
            log.info("learns   %s", optimizer)
        if not all(parameter.requires_grad for parameter in model.parameters()):
            log.info("%s", table(model))
            if isinstance(config.init, ScratchConfig):
                log.warning("what is frozen are random weights: init=run init.path=RUN or init=openai begins with trained ones")
        with _tracking(config, folder, checkpoint, sweep) as tracker:
            trainer = Trainer(
                model=model,
                task=task,
                data=data,
                saved=set(saved),
                optimizer=optimizer,
                schedule=schedule,
                device=device,
                streams=streams,
                tracker=tracker,
                checkpoints=checkpoints,
                progress=Progress(
                    total_steps=steps,
                    log_seconds=config.trainer.log_seconds,
                    peak_memory=device.peak_memory,
                    bar=sweep is None,  # the bars of jobs side by side would overwrite each other
                ),
                sample=_sampler(config, task, model, tokenizer, streams),
                identity=identity,
                max_steps=steps,
                accumulate=config.trainer.accumulate,
                sequence_warmup=_sequence_warmup(config),
                clip_norm=config.trainer.clip_norm,
                ema_decay=config.trainer.ema_decay,
                eval_every=config.trainer.eval_every,
                eval_train_windows=config.trainer.eval_train_windows,
                patience=config.trainer.patience,
                divergence=config.trainer.divergence,
                checkpoint_every=config.trainer.checkpoint_every,
                log_every=config.trainer.log_every,
                prune=prune,
            )
            if checkpoint is not None:
                trainer.resume(checkpoint)
            folder.state = state = trainer.state
            log.info("training %s", _plan(config, data, steps, state))
            log.info("device   %s%s", device, _compiled(config, model))
            for line in measured:
                log.info("measured %s", line)
            if state.step >= steps:
                log.info("nothing left to do; a trainer.max_steps above %d makes the run longer", state.step)
            trainer.fit(stop, _frozen(config, model, data, device, steps))  # of the weights that are resumed with
            folder.result["peak_memory_bytes"] = device.peak_memory()
            if isinstance(optimizer, Muon) and trainer.step_seconds and config.device.type == "cpu":  # a GPU works on meanwhile
                log.info(
                    "learned  %.0f %% of the steps' time was Muon's", 100 * trainer.optimizer_seconds / trainer.step_seconds
                )
            _conclude(config, run_dir, state, device.peak_memory(), tracker)
            if state.finished and isinstance(config.schedule, RangeTestConfig):
                folder.result["suggested_lr"] = _suggest_lr(run_dir, config, tracker)
            if state.finished and config.evaluation is not None:
                folder.result["evaluation"] = _evaluate(config, run_dir, tracker)
            if not state.finished:
                raise SystemExit(stop.exit_code)
        return Result(run_dir, state.best, state)


def _tokenizer(config: TrainConfig, corpus: Any, run_dir: Path) -> tokenizers.Tokenizer:
    """The run's own tokenizer where it has one already; that of the model it starts from; else a new one, learned once per
    corpus and settings."""
    mine = run_dir / "tokenizer.json"
    if config.resume is not None and mine.exists():
        return tokenizers.load(mine)
    settings, template = config.tokenizer, None
    if isinstance(config.task, InstructionTuningConfig):
        template = load_template(config.task.template)
    first = begun_with(config.init)
    if first is not None and first.tokenizer == settings:
        is_run = isinstance(config.init, RunInitConfig)
        path = Path(config.init.path)
        tokenizer = tokenizers.load(path / "tokenizer.json") if is_run else read_pretrained(path).read_tokenizer()
        tokenizers.save(tokenizer, mine)
        return tokenizer
    learned_from = [corpus.fingerprint, asdict(settings), template and template.source]
    key = hashlib.sha256(json.dumps(learned_from, sort_keys=True).encode()).hexdigest()[:24]
    cached = Path(config.paths.cache) / "tokenizers" / f"{corpus.name}-{key}.json"
    if settings.learns_from and cached.exists():
        with contextlib.suppress(tokenizers.TokenizerError):  # damaged: learn it again
            tokenizer = tokenizers.load(cached)
            tokenizers.save(tokenizer, mine)
            return tokenizer
    if template is None:
        texts = corpus.texts(*settings.learns_from) if settings.learns_from else iter(())
    else:  # prompts as the model will see them
        texts = template.texts(record for split in settings.learns_from for record in corpus.splits[split])
    tokenizer = instantiate(settings, texts)
    if settings.learns_from:
        tokenizers.save(tokenizer, cached)
    tokenizers.save(tokenizer, mine)
    return tokenizer


@contextlib.contextmanager
def _tracking(config: TrainConfig, folder: RunFolder, checkpoint: Checkpoint | None, sweep: str | None) -> Iterator[Tracker]:
    """The run's own files and its logger, told at the end how the run ended."""
    files = RunFiles(folder.path, None if config.resume is None else checkpoint.step if checkpoint else -1)
    logger = instantiate(
        config.logger,
        run_dir=folder.path,
        outputs=Path(config.paths.outputs),
        **description(asdict(config), folder.overrides, sweep, code_version(folder.about)),
    )
    tracker = Trackers([files, logger])
    try:
        yield tracker
        folder.end(None)
    except BaseException as error:
        folder.end(error)
        raise
    finally:
        tracker.finish(folder.result["status"], summary(folder.result))


def _frozen(config: TrainConfig, model: nn.Module, data: Any, device: Device, steps: int) -> FrozenStates | None:
    """What the frozen layers make of the data, where there are any and it is known once and for all."""
    return frozen_states(
        model.to(device.torch_device),
        data,
        device,
        keep=config.trainer.frozen_cache,
        limit_gb=config.trainer.frozen_cache_gb,
        epochs=steps * config.trainer.accumulate / data.batches_per_epoch,
        folder=Path(config.paths.cache) / "frozen",
    )


def _compiled(config: TrainConfig, model: nn.Module) -> str:
    """How many blocks of a training step are computed by compiled code, where there is any."""
    gpt = parts(model)[0]
    packed = isinstance(config.task, InstructionTuningConfig) and config.task.packing  # that takes a mask
    n = 0 if packed else compiled_blocks(gpt)
    return f", {n} of {len(gpt.h)} blocks compiled" if gpt.fused else ""


def _sequence_warmup(config: TrainConfig) -> SequenceWarmup | None:
    trainer, full = config.trainer, config.model.context_length
    steps = trainer.sequence_warmup_steps
    return SequenceWarmup(start=trainer.sequence_start, full=full, steps=steps) if steps else None


def _sampler(
    config: TrainConfig, task: Task, model: nn.Module, tokenizer: tokenizers.Tokenizer, streams: RandomStreams
) -> Callable[[int], list[dict[str, str]]]:
    """What continues the task's examples in a random stream of its own."""
    asked = task.examples_to_show()
    if config.task.data_kind == "text" and config.sample_prompt is not None:
        asked = [{"prompt": config.sample_prompt}]
    if not asked:
        return lambda step: []
    generator = TextGenerator(model, tokenizer)
    for example in asked:
        generator.encode(example["prompt"])  # what cannot be done is told now, not at the first evaluation
    Controls.from_config(config.sampling, tokenizer)

    def sample(step: int) -> list[dict[str, str]]:
        prompts, each = [example["prompt"] for example in asked], config.sampling.samples
        made = generator.generate(prompts, sampling=config.sampling, seed=streams.number("sample", step))
        texts = ["\n\n".join(c.text for c in made[i : i + each]) for i in range(0, len(made), each)]
        return [example | {"text": text} for example, text in zip(asked, texts, strict=True)]

    return sample


def _plan(config: TrainConfig, data: Any, steps: int, state: TrainState) -> str:
    micro_batches = steps * config.trainer.accumulate
    batch = f"{config.trainer.accumulate} x " * (config.trainer.accumulate > 1) + data.batch_shape
    plan = f"{steps:,} steps of {batch}, {micro_batches / data.batches_per_epoch:.1f} epochs"
    if growing := config.trainer.sequence_warmup_steps:
        plan += f"; the first {growing:,} are shorter, from {config.trainer.sequence_start} tokens on"
    return f"{plan}; going on from step {state.step:,}" if config.resume is not None else plan


def _conclude(config: TrainConfig, run_dir: Path, state: TrainState, peak_memory: int, tracker: Tracker) -> None:
    """Draw the loss and say how it ended and what one can do next."""
    plots = []
    try:
        plots = [plot for plot in (plot_loss(run_dir, config.name), plot_classes(run_dir)) if plot is not None]
        for plot in plots:
            tracker.picture(plot)
    except Exception as error:  # the run is trained and saved: a picture must not make it fail
        log.warning("the metrics could not be plotted: %s", error)
    best = f", best val/loss {state.best:.4f} at step {state.best_step:,}" if state.best is not None else ""
    what = (
        "given up"
        if state.pruned
        else "finished"
        if state.finished
        else "stopped and saved"
        if state.step
        else "stopped, with nothing to save yet,"
    )
    log.info("%s at step %s in %s%s, peak memory %s", what, f"{state.step:,}", clock(state.seconds), best, size(peak_memory))
    if "test/loss" in state.metrics and config.trainer.keep_best and state.best_step not in (None, state.step):
        log.info("test     of the last step; what is used by default is the best, of step %s", f"{state.best_step:,}")
    for plot in plots:
        log.info("plot     %s", shown(plot))
    if state.finished:
        for command in _NEXT[config.task.data_kind]:
            log.info("try      %s", command.format(shlex.quote(shown(run_dir))))
    else:
        log.info("go on    gpt2x-train resume=%s", shlex.quote(shown(run_dir)))


def _evaluate(config: TrainConfig, run_dir: Path, tracker: Tracker) -> dict[str, Any]:
    """Measure the trained model as gpt2x-evaluate does; what cannot be measured is told, as the run is trained and saved."""
    try:
        found = measure(config.final_evaluation(str(run_dir)))
    except Exception as error:
        log.warning("not measured: %s", error, exc_info=not isinstance(error, UserError))
        log.info("later    gpt2x-evaluate checkpoint=%s evaluation=%s", shlex.quote(shown(run_dir)), config.evaluation.choice)
        return {"error": str(error)}
    log.info("%s", found)
    if (judged := found.numbers.get("folder")) is not None:
        for picture in sorted(Path(judged).glob("*.png")):
            tracker.picture(picture)
        for items in sorted(Path(judged).glob("items*.jsonl")):
            tracker.lines(items)
    return found.numbers


def _suggest_lr(run_dir: Path, config: TrainConfig, tracker: Tracker) -> float | None:
    """Say what a learning-rate range test has found, and draw it."""
    found = read_lr_range(run_dir)
    if found is None or found.suggested is None:
        log.warning("no learning rate is suggested: the training loss never fell, or fewer than ten steps were logged")
        return None
    picture = run_dir / "plots" / "lr_range.png"
    setting = "optimizer.muon_lr" if isinstance(config.optimizer, MuonConfig) else "optimizer.lr"
    plot_lr_range(found, picture, config.name, setting)
    tracker.picture(picture)
    log.info("lr range %s", shown(picture))
    log.info("suggest  %s=%.2g, where the training loss fell fastest", setting, found.suggested)
    return float(f"{found.suggested:.2g}")
