"""Benchmarks: this machine's limits, what gpt2x makes of them, and what its peers do."""
