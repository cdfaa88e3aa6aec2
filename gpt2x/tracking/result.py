"""How a run stands, as its folder tells: what result.json says, and without one whether a process has it open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2x.files import is_locked, read_json


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_metric(value: Any) -> bool:
    """{"name", "value", "step"}, or None where nothing was evaluated."""
    if not isinstance(value, dict):
        return value is None
    return _is_text(value.get("name")) and _is_number(value.get("value")) and _is_whole(value.get("step"))


def _are_metrics(value: Any) -> bool:
    """By their names numbers, None for what is not finite, and tables."""
    return isinstance(value, dict) and all(_is_number(v) or v is None or isinstance(v, (dict, list)) for v in value.values())


_KINDS: dict[str, Callable[[Any], bool]] = {
    "status": lambda value: value in ("finished", "failed", "interrupted"),
    "pruned": lambda value: isinstance(value, bool),
    "metric": _is_metric,
    "last": _are_metrics,
    **dict.fromkeys(("steps", "tokens", "parameters", "trained_parameters"), _is_whole),
    **dict.fromkeys(("seconds", "flops"), _is_number),
    **dict.fromkeys(("error", "started", "config_hash", "platform"), _is_text),
    "git_commit": lambda value: value is None or _is_text(value),
    "overrides": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "versions": lambda value: isinstance(value, dict),
}


def read_result(folder: Path, problems: list[str] | None = None) -> dict[str, Any]:
    """What a run's result.json tells; empty if there is none, or none that tells how the run ended.

    An entry that is not of the kind that training writes is left out, so that what is there can be relied on. What had to be
    left out is added to `problems`.
    """
    path = folder / "result.json"
    found = read_json(path)
    wrong = [key for key, is_right in _KINDS.items() if key in found and not is_right(found[key])]
    told = found.get("status") is not None and "status" not in wrong
    if problems is not None and path.exists() and (wrong or not told):
        problems.append(f"{path}: damaged, " + (f"without {', '.join(wrong)}" if told else "taken for missing"))
    return {key: value for key, value in found.items() if key not in wrong} if told else {}


def status_of(folder: Path, result: dict[str, Any]) -> str:
    """finished, failed, interrupted or pruned (given up by a search), as `result` says; else running or killed."""
    if result.get("pruned"):
        return "pruned"
    return result.get("status") or ("running" if is_locked(folder / ".lock") else "killed")
