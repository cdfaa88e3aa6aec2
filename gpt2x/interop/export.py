"""The export command: a run's model as other programs read it."""

from __future__ import annotations

import logging
from pathlib import Path

from gpt2x.config.option import ConfigError
from gpt2x.config.schema import ExportConfig
from gpt2x.errors import UserError
from gpt2x.files import check_replaceable, shown, write_atomic
from gpt2x.interop import openai
from gpt2x.interop.chat import jinja_template
from gpt2x.interop.gguf import write_gguf
from gpt2x.interop.huggingface_export import check_is_export, write_huggingface
from gpt2x.interop.model_card import model_card
from gpt2x.interop.ollama import MARK, modelfile
from gpt2x.interop.peft import write_adapter
from gpt2x.model.classifier import Classifier
from gpt2x.model.lora import adapted_layers
from gpt2x.task.instruct import InstructionTuning
from gpt2x.task.template import Template
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tracking.result import read_result
from gpt2x.training.load import LoadedRun, load_run

log = logging.getLogger(__name__)


def export(config: ExportConfig) -> None:
    """Write `config.output`. Raises UserError for what the user can mend."""
    output = Path(config.output)
    if output.resolve() == Path(config.checkpoint).resolve():
        raise ConfigError("output", config.output, "this is the checkpoint, which it would replace", "name another folder")
    if config.format == "gguf":
        _check_gguf_output(output)
    if config.format != "gguf" and output.exists() and not output.is_dir():
        raise ConfigError("output", config.output, "this is a file", "name a folder")
    if config.format in ("hf", "openai"):
        try:
            if config.format == "hf":
                check_is_export(output)
            else:
                check_replaceable(output, openai.FILES)
        except UserError as error:
            raise ConfigError("output", config.output, str(error)) from None
    run = load_run(config.checkpoint, config.which, merged=config.format != "peft")
    try:
        _write(config, run)
    except OSError as error:
        raise UserError(f"output={config.output}: cannot be written ({error.strerror or error})") from error
    size = sum(path.stat().st_size for path in ([output] if output.is_file() else output.iterdir()))
    print(f"wrote {shown(output)} ({size / 1e6:.1f} MB): {run.model}")
    if config.format == "gguf":
        print(f"Ollama   ollama create NAME -f {shown(_modelfile(output))}")


def _check_gguf_output(output: Path) -> None:
    """Refuse to replace what is no GGUF file, or a Modelfile that was not written here."""
    if output.is_dir():
        raise ConfigError("output", str(output), "this is a folder", "name a file in it")
    for path, mark in ((output, b"GGUF"), (_modelfile(output), MARK.encode())):
        if path.exists() and mark not in _beginning(path):
            problem = f"{shown(path)} is not of an export, and would be replaced"
            raise ConfigError("output", str(output), problem, "name another file")


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(1000)


def _write(config: ExportConfig, run: LoadedRun) -> None:
    if config.format in ("hf", "peft") and isinstance(run.model, Classifier) and run.model.pooling != "last_token":
        problem = f"has task.pooling={run.model.pooling}, and transformers knows last_token alone"
        raise ConfigError("format", config.format, f"checkpoint={config.checkpoint} {problem}")
    if config.format == "gguf":
        if isinstance(run.model, Classifier):
            problem = "llama.cpp's GPT-2 has no classifier's head"
            raise ConfigError("format", "gguf", f"checkpoint={config.checkpoint} is a classifier, and {problem}")
        _write_gguf(config, run)
    elif config.format == "hf":
        write_huggingface(
            config.output,
            run.model,
            run.tokenizer,
            labels=run.task.about.get("labels"),
            chat_template=jinja_template(*template) if (template := _template(run)) else None,
            card=model_card(run, read_result(Path(config.checkpoint)), Path(config.output).resolve().name),
        )
    elif config.format == "openai":
        if isinstance(run.model, Classifier):
            problem = "OpenAI's GPT-2 has no classifier's head"
            raise ConfigError("format", "openai", f"checkpoint={config.checkpoint} is a classifier, and {problem}")
        openai.write(config.output, run.model, run.tokenizer)
    else:
        if not adapted_layers(run.model):
            problem = f"checkpoint={config.checkpoint} has no adapter"
            raise ConfigError("format", "peft", problem, "train one with finetune=lora, or use format=hf or gguf")
        if (how := getattr(run.config.init, "positions", None)) is not None:
            problem = f"the adapter belongs to a base whose positions init.positions={how} has made, and holds none"
            raise ConfigError("format", "peft", problem, "use format=hf, where it is merged")
        write_adapter(run.model, config.output, base_name=config.base)


def _write_gguf(config: ExportConfig, run: LoadedRun) -> None:
    """The model's file, and one for Ollama beside it."""
    output, (template, instruction) = Path(config.output), _template(run) or (None, None)
    if isinstance(run.tokenizer, CharTokenizer):
        log.warning("llama.cpp leaves out characters that the tokenizer does not know, which gpt2x refuses")
    write_gguf(
        output,
        run.model,
        run.tokenizer,
        weights=config.weights,
        name=run.config.name,
        description=_description(run),
        chat_template=jinja_template(template, instruction),
    )
    text = modelfile(output.name, context_length=run.model.context_length, template=template, instruction=instruction)
    write_atomic(_modelfile(output), text)


def _template(run: LoadedRun) -> tuple[Template, str | None] | None:
    """The template of a model that was tuned to instructions, and the one instruction if all its training had that."""
    return (run.task.template, run.config.data.instruction) if isinstance(run.task, InstructionTuning) else None


def _modelfile(output: Path) -> Path:
    """Where Ollama's file lies for a GGUF file."""
    return output.with_name(output.name.removesuffix(".gguf") + ".Modelfile")


def _description(run: LoadedRun) -> str:
    """What the model is and, where it was trained here, how good it was: a line."""
    if run.checkpoint is None:
        return run.model.shape
    state, step = run.checkpoint.state["trainer"], run.checkpoint.step
    told = f"{run.model.shape}; trained by gpt2x on {run.config.data.name} for {step:,} steps"
    loss = state["metrics"].get("val/loss") if state["evaluated_step"] == step else None
    return told + ("" if loss is None else f"; validation loss {loss:.4f}")
