"""The whole configuration of each command as plain dataclasses, and which ones a group may hold.

Data comes in as composed YAML and overrides (compose.py) and leaves as these dataclasses; nothing
behind the entrypoint ever sees Hydra or OmegaConf.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase as fnmatch
from typing import Any

from gpt2x.benchmark.config import (
    FinetuneSuiteConfig,
    GenerateSuiteConfig,
    JobSuiteConfig,
    LoadSuiteConfig,
    TimeToLossSuiteConfig,
    TrainSuiteConfig,
)
from gpt2x.config.option import ConfigError, option, show
from gpt2x.data.config import SPLITS, InstructionsConfig, TableConfig, TextConfig
from gpt2x.device import DeviceConfig
from gpt2x.evaluation.config import ClassificationConfig, PerplexityConfig, RougeConfig, SamplesConfig
from gpt2x.evaluation.judge.config import BookConfig, JudgedConfig, JudgementConfig, OllamaConfig, OpenAICompatibleConfig
from gpt2x.generation.config import GenerationConfig, SamplingConfig, WeightsConfig
from gpt2x.interop.pretrained import KINDS as FOLDERS
from gpt2x.interop.pretrained import PretrainedError, kind_of, lacking
from gpt2x.model.config import GPTConfig, Variant
from gpt2x.sweep.config import GridConfig, OneAtATimeConfig, OptunaConfig, PairedConfig
from gpt2x.task.config import ClassifierConfig, InstructionTuningConfig, LanguageModelingConfig
from gpt2x.tokenizer.config import BPETokenizerConfig, CharTokenizerConfig, GPT2TokenizerConfig
from gpt2x.tracking.config import NoLoggerConfig, WandbConfig
from gpt2x.training.config import (
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    FullConfig,
    HeadConfig,
    HuggingFaceInitConfig,
    LastBlockConfig,
    LinearConfig,
    LoRAConfig,
    MuonConfig,
    OpenAIInitConfig,
    RangeTestConfig,
    RunInitConfig,
    ScratchConfig,
    SGDConfig,
    TrainerConfig,
    WSDConfig,
)

# What in a TrainConfig is beside what a run computes, as patterns of dotted names. What a resumed run may change is another
# question, with a list of its own (resume.py): changing the patience keeps a run what it is, and does change what comes of it.
BESIDE = (
    *("name", "resume", "seeds", "sweep.*", "paths.*", "logger.*"),
    *("evaluation.*", "judge.*", "device.keep_memory", "trainer.recompute"),
)
"""What a run is called, where its files and its memory lie, who is told, what it is one of, and how it is measured when it
has ended."""
REPEATED = (*BESIDE, "seed", "device.threads", "device.kernels")
"""The same, and what makes a run one more of the same experiment: its luck, and the order of sums."""
OBSERVED = (
    *(*REPEATED, "sample_prompt", "sampling.*", "trainer.keep_*", "trainer.log_*", "trainer.checkpoint_every"),
    *("trainer.frozen_cache*", "trainer.eval_*"),
)
"""The same, and how the run is watched and kept: at one step the same is learned, though the best evaluation may be another."""


def is_any_of(setting: str, patterns: tuple[str, ...]) -> bool:
    """Whether a setting's dotted name, or all of a group's, is of one of the patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns for name in (setting, f"{setting}."))


# Group -> the classes its YAML files may describe; `_target_` in the file says which one. This is also
# the allow-list of what a configuration, ours or one found in somebody's checkpoint, can ever call.
GROUPS: dict[str, tuple[type, ...]] = {
    "model": (GPTConfig,),
    "tokenizer": (GPT2TokenizerConfig, BPETokenizerConfig, CharTokenizerConfig),
    "data": (TextConfig, TableConfig, InstructionsConfig),
    "task": (LanguageModelingConfig, ClassifierConfig, InstructionTuningConfig),
    "init": (ScratchConfig, RunInitConfig, OpenAIInitConfig, HuggingFaceInitConfig),
    "finetune": (FullConfig, LastBlockConfig, HeadConfig, LoRAConfig),
    "optimizer": (AdamWConfig, MuonConfig, SGDConfig),
    "schedule": (CosineConfig, WSDConfig, LinearConfig, ConstantConfig, RangeTestConfig),
    "device": (DeviceConfig,),
    "logger": (WandbConfig, NoLoggerConfig),
    "sampling": (SamplingConfig,),
    "evaluation": (PerplexityConfig, ClassificationConfig, RougeConfig, SamplesConfig, JudgementConfig, JudgedConfig),
    "judge": (OllamaConfig, OpenAICompatibleConfig, BookConfig),
    "sweep": (GridConfig, PairedConfig, OneAtATimeConfig, OptunaConfig),
    "suite": (
        *(GenerateSuiteConfig, FinetuneSuiteConfig, JobSuiteConfig, LoadSuiteConfig),
        *(TrainSuiteConfig, TimeToLossSuiteConfig),
    ),
}


KINDS = {"text": "text to continue", "table": "a table of texts and labels", "instructions": "instructions and answers"}


MODELS = {"text": "a language model", "table": "a classifier", "instructions": "a model tuned to instructions"}


def _such_as(kind: str) -> str:
    choices = {"text": "data=storybook", "table": "data=spam_sample", "instructions": "data=instructions_sample"}
    return f"other data, such as {choices[kind]}"


@dataclass(kw_only=True)
class CachePathsConfig:
    """Where things are kept; relative paths start at the current folder."""

    outputs: str = option("outputs", "runs, sweeps and wandb files", verbatim=True)
    cache: str = option("${paths.outputs}/cache", "downloads and tokenized corpora", verbatim=True)


@dataclass(kw_only=True)
class PathsConfig(CachePathsConfig):
    """The same, and where data may be found."""

    mirror: str | None = option(
        "${oc.env:GPT2X_MIRROR,null}", "a folder searched for files before the network is", verbatim=True
    )


@dataclass(kw_only=True)
class TrainConfig:
    """gpt2x-train: compose a model, a corpus and a recipe, and train."""

    name: str = option("${data.name}", "name of the run, part of its folder's name", verbatim=True)
    seed: int = option(1, "the one number that all random streams are derived from", minimum=0, maximum=2**32 - 1)
    seeds: int | None = option(None, "a sweep that makes each run this many times, with seed, seed+1, ...", minimum=1)
    resume: str | None = option(None, "a run's folder: go on exactly where it stopped; a sweep's: with its runs", verbatim=True)
    sample_prompt: str | None = option(
        "\n", "text that the sample at each evaluation of a language model starts with; null: no samples", verbatim=True
    )
    paths: PathsConfig = field(default_factory=PathsConfig)
    model: Any = None
    tokenizer: Any = None
    data: Any = None
    task: Any = None
    init: Any = field(default_factory=ScratchConfig)
    finetune: Any = field(default_factory=FullConfig)
    optimizer: Any = None
    schedule: Any = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    device: Any = None
    logger: Any = None
    sampling: Any = None
    sweep: Any = field(default_factory=GridConfig)
    evaluation: Any | None = None  # when the run has ended; null: none
    judge: Any | None = None  # of evaluation=judge

    def check(self) -> None:
        """The rules between groups."""
        if not re.fullmatch(r"\w[\w .+-]{0,99}", self.name):
            raise ConfigError("name", self.name, "must be fit for a folder: letters, digits and any of _ . + -, at most 100")
        self._check_task()
        if self.evaluation is not None or self.judge is not None:
            self._check_evaluation()
        if self.sampling.top_logprobs is not None:
            problem = "is for gpt2x-generate: a run's samples are text alone"
            raise ConfigError("sampling.top_logprobs", self.sampling.top_logprobs, problem, "leave it out")
        trainer, warmup = self.trainer, self.schedule.warmup_steps
        every = trainer.checkpoint_every or trainer.eval_every
        if None not in (trainer.max_steps, warmup) and warmup > trainer.max_steps:
            raise ConfigError(
                "schedule.warmup_steps",
                warmup,
                f"the warm-up is longer than the run's trainer.max_steps={trainer.max_steps}",
                f"such as schedule.warmup_steps={trainer.max_steps // 10}",
            )
        if trainer.sequence_warmup_steps:
            self._check_sequence_warmup()
        if trainer.patience is not None and getattr(self.data, "val_fraction", None) == 0:
            problem = "with data.val_fraction=0 there is no validation loss to watch"
            raise ConfigError("trainer.patience", trainer.patience, problem)
        if trainer.keep_every is not None and trainer.keep_every % every:
            problem = f"must be a multiple of {every}, the steps between checkpoints"
            raise ConfigError("trainer.keep_every", trainer.keep_every, problem)

    def _check_sequence_warmup(self) -> None:
        trainer, full = self.trainer, self.model.context_length
        steps, start = trainer.sequence_warmup_steps, trainer.sequence_start
        if self.task.data_kind != "text":
            problem = "is for text: a part of an example is another example"
            raise ConfigError("trainer.sequence_warmup_steps", steps, problem, "leave it out")
        if trainer.max_steps is not None and steps > trainer.max_steps:
            problem = f"the rows would still grow at the end of trainer.max_steps={trainer.max_steps}"
            raise ConfigError("trainer.sequence_warmup_steps", steps, problem, f"use at most {trainer.max_steps}")
        if start >= full:
            problem = f"rows have model.context_length={full} tokens, so there is nothing to grow"
            raise ConfigError("trainer.sequence_start", start, problem, f"such as trainer.sequence_start={max(1, full // 4)}")

    def check_available(self) -> None:
        """The model to begin with must be there, but for a resumed run that has all its weights in its own checkpoints."""
        kinds = {RunInitConfig: "run", OpenAIInitConfig: "openai", HuggingFaceInitConfig: "hf"}
        wanted = kinds.get(type(self.init))  # None: random weights
        if wanted is not None and (self.resume is None or isinstance(self.finetune, LoRAConfig)):
            self._check_init(wanted)
        if self.judge is not None:
            from gpt2x.config.instantiate import instantiate  # which needs this module

            instantiate(self.judge, cache="").server.version()  # whether it is there, before hours of training, not after

    def _check_init(self, wanted: str) -> None:
        """Whether it is there, and of this kind."""
        path = self.init.path
        found = wanted if path is None or (wanted == "hf" and not os.path.isdir(path)) else kind_of(path)  # a name on the hub
        if found != wanted:
            remedy = "runs lie under outputs/runs" if wanted == "run" else f"looked from {os.getcwd()}"
            if self.resume is not None:
                remedy = "give it where it is now: init.path=..."
            elif found is not None:
                remedy = f"it is that of {FOLDERS[found]}: use init={found}"
            raise ConfigError("init.path", path, lacking(wanted), remedy)
        if wanted != "run":
            self._check_shape(wanted)

    def _check_shape(self, kind: str) -> None:
        """What another program's model is like is known before any of its weights are fetched or read."""
        from gpt2x.config.trained import begun_with  # which needs this module

        try:
            theirs = begun_with(self.init).model
            same = getattr(self.init, "size", None) is None or begun_with(OpenAIInitConfig(size=self.init.size)).model == theirs
        except PretrainedError as error:
            raise ConfigError("", None, f"init={kind}: {error}") from None
        if not same:
            problem = f"the model in init.path={self.init.path} is of another size"
            raise ConfigError("init.size", self.init.size, problem, "leave out one of the two")
        for name in ("n_layer", "n_head", "n_embd", *(f.name for f in fields(Variant))):
            mine, value = getattr(self.model, name), getattr(theirs, name)
            if mine != value:
                remedy = f"leave out model= and model.{name}=, or give {show(value)}: init={kind} brings a shape of its own"
                raise ConfigError(f"model.{name}", mine, f"the model that it begins with has {show(value)}", remedy)
        if self.model.tied_head and not theirs.tied_head and self.task.data_kind != "table":
            problem = "the model that it begins with has a head of its own, which would be left behind"
            raise ConfigError("model.tied_head", True, problem, "leave it out")
        mine, known = self.model.context_length, theirs.context_length
        if mine > known and self.init.positions is None:
            problem = f"the model that it begins with has {known:,} positions"
            remedy = f"use at most {known}, or make more of them: init.positions=repeat, init.positions=interpolate"
            raise ConfigError("model.context_length", mine, problem, remedy)

    def final_evaluation(self, run_dir: str) -> EvaluateConfig:
        """What gpt2x-evaluate is asked for when the run in this folder has ended."""
        paths, device = replace(self.paths), replace(self.device, compile=False, kernels=None)
        settings = {"checkpoint": run_dir, "evaluation": self.evaluation, "judge": self.judge, "device": device, "paths": paths}
        if isinstance(self.evaluation, JudgementConfig):
            folder = self.evaluation.folder or os.path.join(run_dir, "judged")
            settings["evaluation"] = replace(self.evaluation, folder=folder)
        if isinstance(self.evaluation, SamplesConfig):
            settings["sampling"] = self.sampling
        return EvaluateConfig(**settings)

    def _check_evaluation(self) -> None:
        """What cannot be measured is told before the training."""
        if self.evaluation is None:
            raise ConfigError("judge", self.judge.choice, "is for evaluation=judge", "add evaluation=judge")
        if isinstance(self.evaluation, JudgedConfig):
            raise ConfigError("evaluation", "judged", "reads what evaluation=judge has written", "use evaluation=judge")
        kind, wanted = self.task.data_kind, self.evaluation.data_kind
        if kind != wanted:
            problem = f"this measures {MODELS[wanted]}, and the run trains {MODELS[kind]}"
            raise ConfigError("evaluation", self.evaluation.choice, problem)
        self.final_evaluation("").check()

    def _check_task(self) -> None:
        kind, wanted = self.data.kind, self.task.data_kind
        if kind != wanted:
            others = {"text": "task=lm", "table": "task=classifier", "instructions": "task=instruct"}
            problem = f"this is {KINDS[kind]}, and the task needs {KINDS[wanted]}"
            raise ConfigError("data", self.data.name, problem, f"use {others[kind]}, or {_such_as(wanted)}")
        tied = self.model.tied_head and wanted != "table"
        if isinstance(self.finetune, HeadConfig) and tied:
            problem = "the model's head is its token embedding, below all blocks, and cannot be trained alone"
            raise ConfigError("finetune", "head", problem, "use finetune=last_block, or model.tied_head=false")
        if isinstance(self.finetune, LoRAConfig) and self.finetune.rank > self.model.n_embd:
            problem = f"the model is model.n_embd={self.model.n_embd} wide: a larger rank adds nothing but parameters"
            raise ConfigError("finetune.rank", self.finetune.rank, problem, "ranks of 4 to 64 are usual")
        if isinstance(self.finetune, LastBlockConfig) and self.finetune.blocks > self.model.n_layer:
            problem = f"the model has model.n_layer={self.model.n_layer} blocks"
            raise ConfigError("finetune.blocks", self.finetune.blocks, problem, f"use at most {self.model.n_layer}")
        if self.sample_prompt not in ("\n", None) and wanted != "text":
            raise ConfigError("sample_prompt", self.sample_prompt, "is for task=lm: a text to continue", "leave it out")


@dataclass(kw_only=True)
class CheckpointConfig:
    """What every command needs that loads a trained model."""

    checkpoint: str = option(help="the folder of a run, or of a model of OpenAI's or Hugging Face's", verbatim=True)
    which: str = option("best", "which of the run's checkpoints: best, last, or a step's number")

    def check(self) -> None:
        if self.which not in ("best", "last") and not self.which.isdecimal():
            raise ConfigError("which", self.which, "expected best, last, or a step's number")

    def check_available(self) -> None:
        """Told before torch is imported, which takes seconds."""
        kind = kind_of(self.checkpoint)
        if kind is None:
            raise ConfigError("checkpoint", self.checkpoint, lacking(*FOLDERS), "runs lie under outputs/runs")
        if kind != "run" and self.which != "best":
            problem = f"checkpoint={self.checkpoint} is {FOLDERS[kind]}, of which there is one"
            raise ConfigError("which", self.which, problem, "leave it out")
        self.trained()

    def trained(self) -> TrainConfig:
        """The configuration that the model was trained with, or that describes it."""
        from gpt2x.config.trained import trained  # which needs this module

        try:
            return trained(self.checkpoint)
        except PretrainedError as error:
            raise ConfigError("", None, f"checkpoint={self.checkpoint}: {error}") from None


@dataclass(kw_only=True)
class ExportConfig(CheckpointConfig):
    """gpt2x-export: write a trained model in a form that other programs read."""

    format: str = option(
        help="gguf: one file for llama.cpp, and a Modelfile for Ollama beside it, of a model that makes text; hf: a folder for "
        "Hugging Face's transformers, of any model and its tokenizer; openai: a folder as OpenAI published GPT-2, a TensorFlow "
        "checkpoint, of a model that makes text; peft: the adapter of a finetune=lora run, a folder for Hugging Face's peft",
        choices=("gguf", "hf", "openai", "peft"),
    )
    output: str = option(
        help="the file (gguf) or folder (hf, openai, peft) to write; beside model.gguf, model.Modelfile is written too, or "
        "replaced",
        verbatim=True,
    )
    weights: str = option("f32", "of gguf: what matrices are kept as", choices=("f32", "f16", "q8_0"))
    base: str | None = option(None, "of peft: name or folder of the base model, for AutoPeftModel", verbatim=True)

    def check(self) -> None:
        super().check()
        if self.format != "gguf" and self.weights != "f32":
            raise ConfigError("weights", self.weights, "is for format=gguf", "leave it out")
        if self.format != "peft" and self.base is not None:
            raise ConfigError("base", self.base, "is for format=peft", "leave it out")


@dataclass(kw_only=True)
class TrainedModelConfig(CheckpointConfig):
    """What every command needs that computes with a trained model."""

    generation: WeightsConfig = field(default_factory=WeightsConfig)
    paths: CachePathsConfig = field(default_factory=CachePathsConfig)
    device: Any = None

    def check(self) -> None:
        super().check()
        weights = self.generation.weights
        if weights != "fp32" and self.device.type != "cpu":
            raise ConfigError("generation.weights", weights, "is for the processor", "use device=cpu, or device.precision=bf16")
        if weights != "fp32" and self.device.precision != "fp32":
            problem = f"device.precision={self.device.precision} keeps the weights as it needs them"
            raise ConfigError("generation.weights", weights, problem, "leave out one of the two")
        if self.device.compile:
            raise ConfigError("device.compile", True, "is for training; here it would compile anew for every length")
        if self.device.kernels is not None:
            problem = "is for training; what generates and measures has compiled code of its own"
            raise ConfigError("device.kernels", self.device.kernels, problem, "leave it out")


@dataclass(kw_only=True)
class GenerateConfig(TrainedModelConfig):
    """gpt2x-generate: let a trained model continue prompts, answer instructions, or classify texts."""

    prompt: str | None = option(
        None,
        "text to continue, as it is, or to classify (then nothing is sampled, whatever sampling says); null, for a language "
        "model: a line end, after which anything may come",
        verbatim=True,
    )
    instruction: str | None = option(
        None, "for a run of task=instruct: what to do, put into the run's template; only the answer is shown", verbatim=True
    )
    input: str = option(
        "",
        "what the instruction is about, which may be left out of a run with a single one; where the context is too short, its "
        "end is cut",
        verbatim=True,
    )
    prompt_file: str | None = option(
        None,
        "prompts (task=instruct: instructions), one a line, or JSON lines with prompt (or instruction, input), id, seed "
        "(*.jsonl); for a classifier texts, one a line, or a table (*.csv, *.tsv, *.jsonl); -: the standard input",
        verbatim=True,
    )
    text_column: str = option("text", "for a classifier: the column of the texts in a table", verbatim=True)
    interactive: bool = option(False, "continue, answer or classify each line as it is typed; /help in it lists the commands")
    format: str | None = option(
        None,
        "of what is made; jsonl: one JSON object a line; csv, for a classifier: the table with predicted, confidence and the "
        "probability of each class beside its columns; null: as output's name ends, else text",
        choices=(None, "text", "jsonl", "csv"),
    )
    output: str | None = option(None, "file for what is made; null: the standard output", verbatim=True)
    seed: int = option(1, "the same seed gives the same text", minimum=0, maximum=2**32 - 1)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    sampling: Any = None  # a classifier draws nothing, and has no use for it

    @property
    def made_format(self) -> str:
        """The format that null stands for, or the one given."""
        ending = os.path.splitext(self.output or "")[1]
        return self.format or (ending[1:] if ending in (".jsonl", ".csv") else "text")

    def _sources(self) -> dict[str, Any]:
        """Where texts can come from; None where they do not."""
        return {
            "prompt": self.prompt,
            "instruction": self.instruction,
            "prompt_file": self.prompt_file,
            "interactive": self.interactive or None,
        }

    def check(self) -> None:
        super().check()
        sources = self._sources()
        given = [name for name, value in sources.items() if value is not None]
        if len(given) > 1:
            problem = f"{given[0]} is given too; the prompts come from one of {', '.join(sources)}"
            raise ConfigError(given[1], sources[given[1]], problem)
        if self.instruction is not None and not self.instruction.strip():
            raise ConfigError("instruction", self.instruction, "expected words")
        if None not in (self.output, self.prompt_file) and os.path.realpath(self.output) == os.path.realpath(self.prompt_file):
            raise ConfigError("output", self.output, "this is prompt_file, which it would replace", "name another file")
        if self.generation.prefill_chunk is not None and not self.generation.cache:
            problem = "with generation.cache=false every text is computed whole, for each token"
            raise ConfigError("generation.prefill_chunk", self.generation.prefill_chunk, problem, "leave out one of the two")
        if self.generation.lookup and self.sampling.beams > 1:
            problem = "guesses tokens of one text, and beam search keeps several"
            raise ConfigError("generation.lookup", self.generation.lookup, problem, "leave out one of the two")
        if self.interactive:
            self._check_interactive()
        elif self.made_format == "text" and self.sampling.top_logprobs is not None:
            problem = "log-probabilities are not part of format=text"
            raise ConfigError("sampling.top_logprobs", self.sampling.top_logprobs, problem, "add format=jsonl")

    def _check_interactive(self) -> None:
        for name in ("output", "format"):
            value = getattr(self, name)
            if value not in (None, "text"):
                raise ConfigError(name, value, "interactive=true shows text on the terminal", f"leave {name} out")
        if self.sampling.samples > 1:
            problem = "interactive=true shows one text at a time"
            raise ConfigError("sampling.samples", self.sampling.samples, problem, "/again makes another one")
        if self.sampling.top_logprobs is not None:
            problem = "interactive=true shows text alone"
            raise ConfigError("sampling.top_logprobs", self.sampling.top_logprobs, problem, "use prompt= and format=jsonl")

    def check_available(self) -> None:
        """What is asked for must be what the run's task can do."""
        super().check_available()
        kind = self.trained().task.data_kind
        if kind == "table":
            self._check_classifier()
        else:
            made = "a language model" if kind == "text" else "tuned to instructions"
            self._refuse({"text_column": "text"}, "table", made)
            if self.made_format == "csv":
                remedy = "add format=text or format=jsonl" if self.format is None else "use format=text or format=jsonl"
                raise ConfigError("format", "csv", f"is for a classifier; checkpoint={self.checkpoint} is {made}", remedy)
        if kind == "text":
            self._refuse({"instruction": None, "input": ""}, "instructions", "a language model", "use prompt=...")
        unasked = all(value is None for value in self._sources().values())
        if kind == "instructions" and self.input and self.instruction is None:
            if not unasked or self.constant_instruction() is None:
                problem = "is what an instruction is about, and none is given"
                raise ConfigError("input", self.input, problem, "add instruction=...")
        elif kind == "instructions" and unasked:
            problem = f"checkpoint={self.checkpoint} is tuned to instructions, and none is given"
            remedy = (
                "add instruction=... (and input=...), prompt_file=... or interactive=true; prompt=... is continued as it is"
            )
            raise ConfigError("instruction", None, problem, remedy)

    def constant_instruction(self) -> str | None:
        """The one instruction that the run was trained with, where its data have no others."""
        return getattr(self.trained().data, "instruction", None)

    def _check_classifier(self) -> None:
        if self.prompt is not None and not self.prompt.strip():
            raise ConfigError("prompt", self.prompt, "there is nothing in it to classify")
        self._refuse({"instruction": None, "input": ""}, "instructions", "a classifier", "use prompt=...")
        if all(value is None for value in self._sources().values()):
            problem = f"checkpoint={self.checkpoint} is a classifier, and no text is given"
            raise ConfigError("prompt", None, problem, "add prompt=..., prompt_file=... or interactive=true")
        defaults = {"sampling": SamplingConfig(), "generation": GenerationConfig()}
        generating = {
            "sampling": ("stop", "samples", "beams", "top_logprobs"),  # the others are what some choice of sampling sets
            "generation": ("cache", "past_context", "prefill_chunk", "lookup"),
        }
        for group, names in generating.items():
            for name in names:
                value = getattr(getattr(self, group), name)
                if value != getattr(defaults[group], name):
                    problem = f"is for generating text; checkpoint={self.checkpoint} is a classifier"
                    raise ConfigError(f"{group}.{name}", value, problem, "leave it out")

    def _refuse(self, unset: dict[str, Any], kind: str, made: str, remedy: str = "leave it out") -> None:
        """Refuse settings that are for a model of another kind; `unset` are their values where they are not given."""
        wanted = {"table": "a classifier", "instructions": "a model tuned to instructions"}[kind]
        for name, value in unset.items():
            if getattr(self, name) != value:
                problem = f"is for {wanted}; checkpoint={self.checkpoint} is {made}"
                raise ConfigError(name, getattr(self, name), problem, remedy)


@dataclass(kw_only=True)
class EvaluateConfig(TrainedModelConfig):
    """gpt2x-evaluate: measure how good a trained model is."""

    checkpoint: str | None = option(None, "a run's folder; null: it is answers= that are judged", verbatim=True)
    answers: str | None = option(
        None,
        "of evaluation=judge, instead of a checkpoint: a JSON list of objects, or JSON lines, with instruction, input, output "
        "and the answer; of evaluation=judged: its items.jsonl, or a JSON list of scores",
        verbatim=True,
    )
    against: str | None = option(
        None, "of evaluation=judge and judged: another run's folder, or such a file, to compare with", verbatim=True
    )
    split: str | None = option(
        None,
        "which part of the data to evaluate on; null: val, or with evaluation=judge test, where there is one",
        choices=(None, *SPLITS),
    )
    output: str | None = option(None, "a JSON file to write the result to; null: it is only printed", verbatim=True)
    table: str | None = option(
        None, "a CSV file that gets one row more, so that all runs of -m end in one table; null: none", verbatim=True
    )
    paths: PathsConfig = field(default_factory=PathsConfig)
    evaluation: Any = None
    judge: Any | None = None  # of evaluation=judge, which chooses one
    data: Any | None = None  # null: the run's own
    sampling: Any = field(default_factory=SamplingConfig)  # of evaluation=samples, and of no other

    def check(self) -> None:
        super().check()
        if isinstance(self.evaluation, JudgementConfig):
            self._check_judge()
        elif isinstance(self.evaluation, JudgedConfig):
            self._check_judged()
        else:
            self._refuse_judge()
        if isinstance(self.evaluation, SamplesConfig):
            self._check_samples()
        else:
            problem = "is for evaluation=samples, which generates texts; others draw nothing from a distribution"
            self._refuse_sampling(tuple(vars(SamplingConfig())), problem, "leave it out")
        reduced = self.generation.weights != "fp32" or self.device.precision != "fp32"
        if getattr(self.evaluation, "against_fp32", False) and not reduced:
            raise ConfigError(
                "evaluation.against_fp32",
                True,
                "everything is computed in fp32 already, so there is nothing to compare",
                "use it with generation.weights=int8, generation.weights=bf16 or device.precision=bf16",
            )

    def check_available(self) -> None:
        if isinstance(self.evaluation, JudgedConfig):  # of a run, and its model is of no matter
            if self.checkpoint is not None and kind_of(self.checkpoint) != "run":
                raise ConfigError("checkpoint", self.checkpoint, lacking("run"), "runs lie under outputs/runs")
        elif self.checkpoint is not None:
            super().check_available()
            self._check_own_data()
        for name in ("answers", "against"):
            path = getattr(self, name)
            if path is None or os.path.isfile(os.path.expanduser(path)):
                continue
            if name == "answers" or not os.path.isfile(os.path.join(path, "config.yaml")):
                problem = "no such file" if name == "answers" else "neither a file of answers nor the folder of a run"
                raise ConfigError(name, path, problem, f"looked from {os.getcwd()}")

    def _check_judge(self) -> None:
        """Answers are those of a run or of a file, and are compared with others or not."""
        settings, unset = self.evaluation, JudgementConfig()
        if self.judge is None:
            raise ConfigError("", None, "judge must be chosen: judge=ollama, judge=openai_compatible or judge=book")
        self._check_source()
        if settings.mode == "pairwise" and self.against is None:
            problem = "there is nothing to compare the answers with"
            raise ConfigError("evaluation.mode", "pairwise", problem, "add against=..., another run or a file of answers")
        if isinstance(self.judge, BookConfig) and self.against is not None and settings.mode != "absolute":
            raise ConfigError("judge", "book", "the book's judge scores, and cannot compare", "add evaluation.mode=absolute")
        for field_name, source in (("answer_field", "answers"), ("against_field", "against")):
            if getattr(settings, field_name) is not None and getattr(self, source) is None:
                value, problem = getattr(settings, field_name), f"is of {source}=, which is not given"
                raise ConfigError(f"evaluation.{field_name}", value, problem, "leave it out")
        if self.answers is None:
            return
        for name in ("split", "data"):
            if (value := getattr(self, name)) is not None:
                raise ConfigError(name, getattr(value, "name", value), "the answers of a file are judged", "leave it out")
        for name in ("max_new_tokens", "temperature", "seed", "batch_size"):
            if self.against is None and (value := getattr(settings, name)) != getattr(unset, name):
                problem = "the answers of a file are judged, and none are made"
                raise ConfigError(f"evaluation.{name}", value, problem, "leave it out")

    def _check_source(self) -> None:
        if (self.checkpoint is None) == (self.answers is None):
            given = "both are given" if self.answers else "neither is given"
            problem = f"it is the answers of a run or of a file that are judged, checkpoint= or answers=, and {given}"
            raise ConfigError("", None, problem)

    def _check_judged(self) -> None:
        """Nothing is computed with a model, or asked of a judge."""
        self._check_source()
        for name in ("split", "data", "judge"):
            if (value := getattr(self, name)) is not None:
                told = getattr(value, "name", getattr(value, "choice", value))
                raise ConfigError(name, told, "evaluation=judged reads what is judged already", "leave it out")

    def _refuse_judge(self) -> None:
        if self.judge is not None:
            raise ConfigError("judge", self.judge.choice, "is for evaluation=judge", "add evaluation=judge")
        for name in ("answers", "against"):
            if getattr(self, name) is not None:
                raise ConfigError(name, getattr(self, name), "is for evaluation=judge", "add evaluation=judge")
        if self.checkpoint is None:
            raise ConfigError(
                "", None, "checkpoint must be given: the folder of a run, or of a model of OpenAI's or Hugging Face's"
            )

    def _check_own_data(self) -> None:
        """Of a model that another program wrote there are no data."""
        if self.data is None and self.trained().data is None:
            problem = f"checkpoint={self.checkpoint} was not trained here, so that there are no data of its own"
            if isinstance(self.evaluation, SamplesConfig):
                raise ConfigError("evaluation", "samples", f"texts begin with the run's own text, and {problem}")
            raise ConfigError("data", None, f"must be given: {problem}", "such as data=shakespeare")

    def _check_samples(self) -> None:
        """Texts are of one length, one of each beginning, and begin with the text that the run knows."""
        if self.data is not None:
            problem = "texts begin with the run's own text, and are compared with it"
            raise ConfigError("data", self.data.name, problem, "leave it out; split=... chooses the part")
        problem = "evaluation=samples measures texts of one length, one of each beginning"
        remedy = "evaluation.texts says how many, and sampling.max_new_tokens how long"
        self._refuse_sampling(("samples", "stop", "top_logprobs"), problem, remedy)

    def _refuse_sampling(self, names: tuple[str, ...], problem: str, remedy: str) -> None:
        unset = SamplingConfig()
        for name in names:
            if (value := getattr(self.sampling, name)) != getattr(unset, name):
                raise ConfigError(f"sampling.{name}", value, problem, remedy)


@dataclass(kw_only=True)
class BenchmarkConfig:
    """gpt2x-benchmark: measure this machine, gpt2x and its peers side by side."""

    output: str = option(
        "${paths.outputs}/benchmarks/${suite.name}-${now:%Y-%m-%d_%H-%M-%S}.json",
        "file that keeps every measurement",
        verbatim=True,
    )
    seed: int = option(1, "of the random weights and tokens", minimum=0, maximum=2**32 - 1)
    paths: CachePathsConfig = field(default_factory=CachePathsConfig)
    suite: Any = None
    model: Any | None = None  # null: the suite's experiments say it
    device: Any = None

    def check(self) -> None:
        if self.device.type != "cpu":
            raise ConfigError("device.type", self.device.type, "what is measured is the processor", "use device=cpu")
        if self.device.precision != "fp32":
            problem, remedy = "the precision is part of what each contestant is", "choose among suite.contestants"
            if isinstance(self.suite, TimeToLossSuiteConfig):
                problem, remedy = "is a setting of the runs", """use 'suite.settings=["device=cpu_bf16"]'"""
            raise ConfigError("device.precision", self.device.precision, problem, remedy)
        if self.device.compile:
            raise ConfigError("device.compile", True, "no contestant is compiled", "leave it out")
        if self.device.kernels is not None and isinstance(self.suite, (GenerateSuiteConfig, LoadSuiteConfig)):
            raise ConfigError("device.kernels", self.device.kernels, "is for training, and this suite does not", "leave it out")
        if isinstance(self.suite, TimeToLossSuiteConfig) and self.seed != 1:
            raise ConfigError("seed", self.seed, "this suite has a run with each of suite.seeds", "use suite.seeds=[...]")
        if self.model is None and not isinstance(self.suite, TimeToLossSuiteConfig):
            raise ConfigError("model", None, "this suite measures one model", "such as model=gpt2")
        if self.model is not None:
            for name, value in self.model.changes().items():
                raise ConfigError(f"model.{name}", value, "the other contestants are GPT-2 alone", "leave it out")
        try:
            self.suite.check_model(self.model)
        except ConfigError as error:
            raise error.within("suite") from None


@dataclass(kw_only=True)
class CompareConfig:
    """gpt2x-compare: tables, verdicts and a page of runs; give it run folders, sweeps, or any folders above."""

    runs: list[str] = option([], "the folders, as gpt2x-compare FOLDER ... names them; none: paths.outputs")
    where: dict[str, Any] = option(
        {},
        "only runs whose settings are like this, such as {model.n_layer: 4, status: finished}; a list: any of these, or "
        "that list itself. Keys are settings, by their whole names or the last part, and run, sweep, job, name, status",
    )
    metric: str = option(
        "val/loss", "what decides: any metric that runs log, the best of each run; with last. before it, the last evaluation's"
    )
    baseline: dict[str, Any] = option(
        {}, "what the others are measured against: the one group of runs that is like this (see where); none: the best"
    )
    rows: int = option(40, "rows of a table that are printed, the best first", minimum=1)
    html: str | None = option("${paths.outputs}/compare.html", "file for the page; null: none", verbatim=True)
    output: str | None = option(
        None, "folder for the tables (runs, groups, metrics, samples) and the picture of the metric; null: none", verbatim=True
    )
    format: str = option("csv", "of those tables", choices=("csv", "parquet"))
    picture: str = option("png", "of that picture", choices=("png", "svg"))
    x: str = option("step", "what the picture's curves run over", choices=("step", "tokens", "seconds", "flops"))
    smoothing: float = option(0.0, "smooth its curves: how much a point weighs of what the next one does", minimum=0, below=1)
    log_x: bool = option(False, "its horizontal axis is logarithmic")
    log_y: bool = option(False, "its vertical axis is logarithmic")
    save_curve: str | None = option(
        None,
        "keep the validation loss of these runs, which differ in nothing but the seed, as the curve of this name that later "
        "runs of the same settings are held against",
    )
    curves: str = option(
        "${paths.outputs}/curves",
        "folder of such curves, kept and read here; those that ship with gpt2x are read, too",
        verbatim=True,
    )
    sync: bool = option(False, "send to wandb what it has not got of these runs")
    workspace: bool = option(False, "save to wandb a workspace that shows these runs")
    project: str | None = option(None, "of wandb; null: the one that each run was made for")
    entity: str | None = option(None, "of wandb, a user or team; null: the one that each run was made for")
    paths: CachePathsConfig = field(default_factory=CachePathsConfig)

    def check(self) -> None:
        if self.save_curve is not None and not re.fullmatch(r"\w[\w.+-]{0,99}", self.save_curve):
            problem = "must be fit for a file: letters, digits and any of _ . + -, at most 100"
            raise ConfigError("save_curve", self.save_curve, problem)
        if self.html is not None and os.path.isdir(self.html):
            raise ConfigError("html", self.html, "is a folder", f"name a file in it: html={self.html}/compare.html")
        if self.output is not None and os.path.isfile(self.output):
            raise ConfigError("output", self.output, "is a file, and a folder is wanted")

    def check_available(self) -> None:
        usual = os.path.join(self.paths.outputs, "curves")  # there is none before the first curve
        if self.curves != usual and self.save_curve is None and not os.path.isdir(self.curves):
            raise ConfigError("curves", self.curves, "no such folder", "save_curve=NAME makes a curve, and the folder")
        if self.format == "parquet" and self.output is not None and importlib.util.find_spec("pyarrow") is None:
            remedy = "pip install 'gpt2x[parquet]', or use format=csv"
            raise ConfigError("format", "parquet", "needs the package pyarrow, which is not installed", remedy)
