"""The interactive mode with a stand-in for the model, as a process of its own: `python chat_session.py HISTORY`.

The continuation of a prompt is " <prompt|seed|temperature>", in two pieces. Prompts that say so are slow, or refused.
With INSTRUCTIONS in the environment what is typed are instructions; their prompts are "[instruction/input/max_new_tokens]".
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gpt2x.config.check import check
from gpt2x.config.compose import change
from gpt2x.config.schema import GenerateConfig
from gpt2x.errors import UserError
from gpt2x.generation.chat import chat


@dataclass
class Completion:
    text: str
    tokens: list[int]
    finish: str


class Generator:
    def generate(self, prompts, *, sampling, seed, on_text):
        (prompt,) = prompts
        made = []

        def show(text: str) -> None:
            made.append(text)
            on_text(0, text)

        if "ï" in prompt:
            raise UserError("unknown to this character tokenizer: 'ï'")
        if "nothing" in prompt:
            return [Completion("", [], "end_of_text")]
        if "escape" in prompt:
            show("\x1b[31m")
        if "forever" in prompt:
            try:
                while True:
                    show(" on")
                    time.sleep(0.01)
            except KeyboardInterrupt:
                if "rudely" in prompt:
                    raise
                return [Completion("".join(made), [0] * len(made), "interrupted")]
        show(f" <{prompt}|")
        show(f"{seed}|{sampling.temperature:g}>")
        return [Completion("".join(made), [0, 0], "length")]


def asked(instruction, input, sampling):
    if "long" in instruction:
        raise UserError("too long")
    return f"[{instruction}/{input}/{sampling.max_new_tokens}]"


def main() -> None:
    settings = dict(checkpoint="run", interactive=True, device={"_target_": "gpt2x.device.Device"}, sampling={})
    config = check(GenerateConfig, settings)

    def changed(sampling, override):
        config.sampling = sampling
        return change("generate", config, override).sampling

    history = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    chat(
        Generator(),
        sampling=config.sampling,
        seed=3,
        change=changed,
        presets=["creative", "greedy"],
        history=history,
        ask=asked if os.environ.get("INSTRUCTIONS") else None,
    )
    print("left in order")


if __name__ == "__main__":
    main()
