"""What is known of a model by its folder alone, as the configuration of a run: its shape, its tokenizer and its task.

The folder is that of a run, of OpenAI's or of Hugging Face's model. Nothing here needs torch: it is what a command line is
checked against before anything is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2x.config.compose import from_yaml
from gpt2x.config.schema import TrainConfig
from gpt2x.interop.openai import described
from gpt2x.interop.pretrained import Description, describe
from gpt2x.model.config import GPTConfig
from gpt2x.task.config import ClassifierConfig, LanguageModelingConfig
from gpt2x.tokenizer.config import BPETokenizerConfig, CharTokenizerConfig, GPT2TokenizerConfig
from gpt2x.training.config import HuggingFaceInitConfig, OpenAIInitConfig


def trained(path: str | Path) -> TrainConfig:
    """The configuration of the run in folder `path`; of another program's model one that begins with it and has no data.

    Raises UserError where there is neither, or no such model is possible here.
    """
    if Path(path, "config.yaml").is_file():
        return from_yaml(Path(path, "config.yaml"), TrainConfig)
    return _as_run(describe(path))


def begun_with(init: Any) -> TrainConfig | None:
    """The same of the model that `init`, a config of that group, begins with; None where that is a new one."""
    path = getattr(init, "path", None)
    if path is None:
        return _as_run(described(init.size)) if isinstance(init, OpenAIInitConfig) else None
    if isinstance(init, HuggingFaceInitConfig) and not Path(path).is_dir():
        from gpt2x.interop.huggingface import find

        path = find(path, weights=False)
    return trained(path)


def _as_run(about: Description) -> TrainConfig:
    init = {"openai": OpenAIInitConfig, "hf": HuggingFaceInitConfig}[about.format]
    tokenizer = {
        "gpt2": GPT2TokenizerConfig(),
        "bpe": BPETokenizerConfig(vocab_size=about.vocab_size),
        "char": CharTokenizerConfig(),
    }
    return TrainConfig(
        name=about.path.name,
        model=GPTConfig(**about.model),
        tokenizer=tokenizer[about.tokenizer],
        task=LanguageModelingConfig() if about.labels is None else ClassifierConfig(),
        init=init(path=str(about.path)),
    )
