"""Settings of the sweep group: how the values of a sweep's runs are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config.option import option


@dataclass(kw_only=True)
class SweepConfig:
    """What every way to sweep has. The sweep loop reads these two; the rest is for the search."""

    params: dict[str, str] = option(
        {}, "setting or group: its values as typed after =, such as 'optimizer.lr': '1e-4,3e-4'; the command line's win"
    )
    on_error: str = option(
        "continue", "when a run fails: go on with the others, or start no further one", choices=("continue", "stop")
    )


@dataclass(kw_only=True)
class GridConfig(SweepConfig):
    """Every combination of the values, the last one changing fastest."""

    _target_: str = "gpt2x.sweep.search.Grid"


@dataclass(kw_only=True)
class PairedConfig(SweepConfig):
    """The first values together, then the second ones, and so on: all lists are as long."""

    _target_: str = "gpt2x.sweep.search.Paired"
