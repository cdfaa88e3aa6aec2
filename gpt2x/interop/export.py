"""The export command: a run's model as other programs read it."""

from __future__ import annotations

from pathlib import Path

from gpt2x.config.option import ConfigError
from gpt2x.config.schema import ExportConfig
from gpt2x.files import shown
from gpt2x.interop.gguf import write_gguf
from gpt2x.interop.peft import write_adapter
from gpt2x.model.classifier import Classifier
from gpt2x.model.lora import adapted_layers
from gpt2x.training.load import load_run


def export(config: ExportConfig) -> None:
    """Write `config.output`. Raises UserError for what the user can mend."""
    run = load_run(config.checkpoint, config.which, merged=config.format != "peft")
    if config.format == "gguf":
        if isinstance(run.model, Classifier):
            problem = "llama.cpp's GPT-2 has no classifier's head"
            raise ConfigError("format", "gguf", f"checkpoint={config.checkpoint} is a classifier, and {problem}")
        write_gguf(config.output, run.model, run.tokenizer, weights=config.weights)
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
    size = sum(path.stat().st_size for path in _files(Path(config.output)))
    print(f"wrote {shown(Path(config.output))} ({size / 1e6:.1f} MB): {run.model}")


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.iterdir())
