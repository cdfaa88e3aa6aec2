"""The export command: a run's model as other programs read it."""

from __future__ import annotations

from pathlib import Path

from gpt2x.config.option import ConfigError
from gpt2x.config.schema import ExportConfig
from gpt2x.errors import UserError
from gpt2x.files import shown
from gpt2x.interop import openai
from gpt2x.interop.gguf import write_gguf
from gpt2x.interop.peft import write_adapter
from gpt2x.model.classifier import Classifier
from gpt2x.model.lora import adapted_layers
from gpt2x.training.load import LoadedRun, load_run


def export(config: ExportConfig) -> None:
    """Write `config.output`. Raises UserError for what the user can mend."""
    output = Path(config.output)
    if config.format == "gguf" and output.is_dir():
        raise ConfigError("output", config.output, "this is a folder", "name a file in it")
    if config.format != "gguf" and output.exists() and not output.is_dir():
        raise ConfigError("output", config.output, "this is a file", "name a folder")
    run = load_run(config.checkpoint, config.which, merged=config.format != "peft")
    try:
        _write(config, run)
    except OSError as error:
        raise UserError(f"output={config.output}: cannot be written ({error.strerror or error})") from error
    size = sum(path.stat().st_size for path in ([output] if output.is_file() else output.iterdir()))
    print(f"wrote {shown(output)} ({size / 1e6:.1f} MB): {run.model}")


def _write(config: ExportConfig, run: LoadedRun) -> None:
    if config.format == "gguf":
        if isinstance(run.model, Classifier):
            problem = "llama.cpp's GPT-2 has no classifier's head"
            raise ConfigError("format", "gguf", f"checkpoint={config.checkpoint} is a classifier, and {problem}")
        write_gguf(config.output, run.model, run.tokenizer, weights=config.weights)
    elif config.format == "openai":
        if isinstance(run.model, Classifier):
            problem = "OpenAI's GPT-2 has no classifier's head"
            raise ConfigError("format", "openai", f"checkpoint={config.checkpoint} is a classifier, and {problem}")
        openai.write(config.output, run.model, run.tokenizer)
    else:
        if not adapted_layers(run.model):
            problem = f"checkpoint={config.checkpoint} has no adapter"
            raise ConfigError("format", "peft", problem, "train one with finetune=lora, or use format=gguf")
        if isinstance(run.model, Classifier) and run.model.pooling != "last_token":
            problem = (
                f"checkpoint={config.checkpoint} has task.pooling={run.model.pooling}, and transformers knows last_token alone"
            )
            raise ConfigError("format", "peft", problem)
        write_adapter(run.model, config.output, base_name=config.base)
