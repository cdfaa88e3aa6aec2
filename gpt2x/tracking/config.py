"""Settings of the logger group."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config.option import option


@dataclass(kw_only=True)
class WandbConfig:
    """Weights & Biases, beside the run's own files."""

    _target_: str = "gpt2x.tracking.wandb.WandbTracker"
    mode: str = option(
        "auto",
        "auto: online with an API key, else offline; disabled: not at all",
        choices=("auto", "online", "offline", "disabled"),
    )
    project: str = option("gpt2x", "wandb project")
    entity: str | None = option(None, "wandb user or team; null: the key's own")
    group: str | None = option(None, "wandb group; null: the sweep's folder in a multirun")
    tags: list[str] = option([], "wandb tags")
    notes: str | None = option(None, "wandb notes; null: the command's overrides", verbatim=True)
    init_timeout: float = option(30.0, "seconds to wait for the server before going on offline", above=0)


@dataclass(kw_only=True)
class NoLoggerConfig:
    """Only the run's own files: metrics.jsonl, samples.jsonl, result.json, run.log."""

    _target_: str = "gpt2x.tracking.tracker.NullTracker"
