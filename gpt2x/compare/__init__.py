"""Comparing runs: from their folders to tables, verdicts, pictures and one HTML page."""

from gpt2x.compare.runs import Runs, load_runs

__all__ = ["Runs", "load_runs"]
