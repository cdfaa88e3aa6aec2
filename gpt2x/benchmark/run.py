"""The benchmark command: a suite measures, a table is printed and every measurement is kept."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2x.benchmark import machine
from gpt2x.config.instantiate import instantiate
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import BenchmarkConfig
from gpt2x.errors import UserError
from gpt2x.files import shown, write_atomic
from gpt2x.training.run_folder import git_commit, versions
from gpt2x.training.signals import StopRequest


def benchmark(config: BenchmarkConfig) -> None:
    """Run `config.suite`, print its table and write config.output. Raises UserError if a part of it failed."""
    output = Path(config.output)
    if output.is_dir():
        raise ConfigError("output", config.output, "is a folder", "name a file in it")
    device = instantiate(config.device)
    suite = instantiate(config.suite)
    about = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": asdict(config),
        "versions": versions(),
        "git_commit": git_commit(),
        "machine": machine.facts(),
        "threads": device.threads,
    }
    print(f"machine  {about['machine']['cpu']}, {device.threads} thread{'s' * (device.threads > 1)}", flush=True)
    with StopRequest():  # a SIGTERM too ends the contestants and removes their files
        report = about | suite.run(
            model=None if config.model is None else _arguments(config.model),
            device=_arguments(config.device) | {"threads": device.threads, "kernels": device.kernels},
            seed=config.seed,
            cache=config.paths.cache,
        )
    print(f"\n{report['table']}\n", flush=True)
    try:
        write_atomic(output, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"output={config.output}: cannot be written ({error.strerror})") from error
    print(f"every measurement: {shown(output)}")
    failed = [entry["name"] for entry in report["contestants"] if entry["status"] == "failed"]
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; the reasons are told above and in {shown(output)}")


def _arguments(config: Any) -> dict[str, Any]:
    """What the component that `config` describes is called with."""
    return {name: value for name, value in asdict(config).items() if name != "_target_"}
