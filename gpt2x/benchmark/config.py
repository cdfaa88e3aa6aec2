"""Settings of the suite group."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.benchmark.generate_contestants import CONTESTANTS
from gpt2x.config.option import ConfigError, option


@dataclass(kw_only=True)
class GenerateSuiteConfig:
    """How fast text is generated, greedily, by a model of random weights."""

    _target_: str = "gpt2x.benchmark.generate.GenerateSuite"
    name: str = option("generate", "what the suite is called in the report")
    contestants: list[str] | None = option(None, f"who takes part; null: all, which are {', '.join(CONTESTANTS)}")
    batch_sizes: list[int] = option([1, 8], "prompts generated for at once; llama.cpp takes part with 1", minimum=1)
    prompt_tokens: int = option(32, "length of each prompt", minimum=1)
    new_tokens: int = option(128, "tokens generated for each prompt; end-of-text is ignored", minimum=2)
    rounds: int = option(5, "measurements of each contestant, taken in turns, after a first one that is not counted", minimum=1)
    timeout: float = option(600.0, "seconds after which a contestant that loads or generates has failed", above=0)

    def check(self) -> None:
        for name in ("contestants", "batch_sizes"):
            values = getattr(self, name)
            if values is not None and not 0 < len(set(values)) == len(values):
                raise ConfigError(name, values, "must name at least one, and each once")
        for name in self.contestants or ():
            if name not in CONTESTANTS:
                raise ConfigError("contestants", self.contestants, f"{name} is none of {', '.join(CONTESTANTS)}")
