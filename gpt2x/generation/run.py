"""The generate command: a run's model continues a prompt."""

from __future__ import annotations

import codecs

import torch

from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import GenerateConfig
from gpt2x.generation import sampling
from gpt2x.training.load import load_run


def generate(config: GenerateConfig) -> None:
    """Print `config.prompt` and its continuation as it is made. Raises UserError for what the user can mend."""
    device = instantiate(config.device)
    run = load_run(config.checkpoint, config.which)
    model, tokenizer = run.model.to(device.torch_device), run.tokenizer
    prompt = sampling.encode_prompt(tokenizer, config.prompt)
    tokens = sampling.generate(
        model,
        prompt,
        **vars(config.sampling),
        end_of_text=tokenizer.end_of_text,
        generator=torch.Generator().manual_seed(config.seed),
    )
    # A character may be spread over several tokens: print it when its last byte is there.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    print(config.prompt, end="", flush=True)
    with device.autocast():
        for token in tokens:
            print(decoder.decode(tokenizer.decode_bytes([token])), end="", flush=True)
    print(decoder.decode(b"", final=True))
