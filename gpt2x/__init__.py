"""gpt2x: build, train, sample and compare GPT-2 on the computer you have."""

__version__ = "0.1.0"
