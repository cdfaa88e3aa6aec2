"""How a run stands, as its folder tells: what result.json says, and without one whether a process has it open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2x.files import is_locked, read_json


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a run's result.json; empty if there is none, or none that tells how the run ended."""
    result = read_json(folder / "result.json")
    return result if isinstance(result.get("status"), str) else {}


def status_of(folder: Path, result: dict[str, Any]) -> str:
    """finished, failed, interrupted or pruned (given up by a search), as `result` says; else running or killed."""
    if result.get("pruned"):
        return "pruned"
    return result.get("status") or ("running" if is_locked(folder / ".lock") else "killed")
