"""Who takes part in suite=generate, and the process that each of them runs in.

The suite (generate.py) starts `python -m gpt2x.benchmark.generate_contestants` once for each. It reads a job, one line of
JSON, loads, says so, and then for each further line generates once and answers what that took. Nothing heavy is imported
here, so that a contestant's memory is its own.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.benchmark.process import Answer, serve
from gpt2x.device import Device

# Generates `new_tokens` for each of the prompts and says in seconds what it took: "seconds" in all,
# "first_token_seconds", "decode_seconds" after it; and "tokens", how many were made for all prompts together.
Generate = Callable[[list[list[int]], int], dict[str, Any]]


@dataclass(frozen=True)
class Contestant:
    """One way to generate.

    load              from a job (made in generate.py) to what generates, and what else a report should tell of it
    bytes_per_weight  what a weight of a matrix takes in memory
    requires          packages that gpt2x itself does not need
    gguf              the kind of GGUF file it reads, or None: it makes its random weights itself
    batches           whether it generates for several prompts at once
    """

    name: str
    load: Callable[[dict[str, Any]], tuple[Generate, dict[str, Any]]]
    bytes_per_weight: float
    requires: tuple[str, ...] = ()
    gguf: str | None = None
    batches: bool = True


def _ours(job: dict[str, Any], *, weights: str | None, precision: str = "fp32") -> tuple[Generate, dict[str, Any]]:
    """gpt2x as gpt2x-generate runs it; `weights` None leaves everything to torch."""
    import torch

    from gpt2x.generation.controls import Controls
    from gpt2x.generation.decoding import decode
    from gpt2x.model.gpt import GPT

    Device(**job["device"] | {"precision": precision})
    model = GPT(vocab_size=job["vocab_size"], **job["model"], generator=torch.Generator().manual_seed(job["seed"])).eval()
    if weights is not None:
        from gpt2x.model.prepared import prepare

        prepare(model, weights=weights, precision=precision, cache=Path(job["cache"]))

    def run(prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        watch = Stopwatch()
        for rows in decode(model, prompts, controls=Controls(temperature=0), max_new_tokens=new_tokens):
            watch.step(len(rows))
        return watch.result()

    return run, {}


def _transformers(job: dict[str, Any], *, dtype: str) -> tuple[Generate, dict[str, Any]]:
    """GPT2LMHeadModel.generate of the package transformers, as it comes."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(job["device"]["threads"])
    torch.manual_seed(job["seed"])
    model = job["model"]
    config = GPT2Config(
        vocab_size=job["vocab_size"],
        n_layer=model["n_layer"],
        n_head=model["n_head"],
        n_embd=model["n_embd"],
        n_positions=model["context_length"],
        tie_word_embeddings=model["tied_head"],
        bos_token_id=None,
        eos_token_id=None,  # nothing ends a text early
    )
    torch.set_default_dtype(getattr(torch, dtype))
    network = GPT2LMHeadModel(config).eval()
    torch.set_default_dtype(torch.float32)

    class Streamer:
        """Told of the prompt, then of each step's tokens."""

        def __init__(self):
            self.watch, self.prompt_seen = Stopwatch(), False

        def put(self, tokens: torch.Tensor) -> None:
            if self.prompt_seen:
                self.watch.step(tokens.numel())
            self.prompt_seen = True

        def end(self) -> None:
            pass

    def run(prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        streamer = Streamer()
        prompts_BT = torch.tensor(prompts)
        network.generate(
            prompts_BT,
            attention_mask=torch.ones_like(prompts_BT),
            do_sample=False,
            max_new_tokens=new_tokens,
            streamer=streamer,
        )
        return streamer.watch.result()

    return run, {}


def _llama_cpp(job: dict[str, Any]) -> tuple[Generate, dict[str, Any]]:
    """llama.cpp's server within the process, from the package xllamacpp; asked over HTTP as it is meant to be."""
    import urllib.request

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["gguf"]
    params.n_ctx = job["model"]["context_length"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["device"]["threads"]
    params.hostnames, params.port = ["127.0.0.1"], 0  # 0: any that is free
    params.ui, params.verbosity = False, 0
    server = xllamacpp.Server(params)  # answers once the model is loaded
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this address

    def run(prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        (prompt,) = prompts
        question = dict(
            prompt=prompt, n_predict=new_tokens, ignore_eos=True, cache_prompt=False, samplers=["top_k"], top_k=1, temperature=0
        )
        address, headers = server.listening_address + "/completion", {"Content-Type": "application/json"}
        started = time.perf_counter()
        request = urllib.request.Request(address, json.dumps(question).encode(), headers)
        with opener.open(request) as response:
            answer = json.load(response)
        seconds = time.perf_counter() - started
        timings = answer["timings"]
        return {
            "seconds": seconds,
            "first_token_seconds": timings["prompt_ms"] / 1000,
            "decode_seconds": timings["predicted_ms"] / 1000,
            "tokens": answer["tokens_predicted"],
        }

    return run, {"system": xllamacpp.get_system_info()}  # such as the instructions that the package was built for


class Stopwatch:
    """Runs from its making on; notes the first step and the last."""

    def __init__(self):
        self.tokens, self.first = 0, None
        self.started = time.perf_counter()

    def step(self, tokens: int) -> None:
        """That many tokens, one for each prompt, are there."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.tokens += tokens

    def result(self) -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - self.started,
            "first_token_seconds": self.first - self.started,
            "decode_seconds": self.last - self.first,
            "tokens": self.tokens,
        }


BASELINE = "transformers-fp32"  # the others' speed is told as a multiple of this one's
CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant("gpt2x-eager", functools.partial(_ours, weights=None), 4),
        Contestant("gpt2x-fp32", functools.partial(_ours, weights="fp32"), 4),
        Contestant("gpt2x-bf16", functools.partial(_ours, weights="bf16"), 2),
        Contestant("gpt2x-bf16-compute", functools.partial(_ours, weights="fp32", precision="bf16"), 2),
        Contestant("gpt2x-int8", functools.partial(_ours, weights="int8"), 1),
        Contestant("transformers-fp32", functools.partial(_transformers, dtype="float32"), 4, ("transformers",)),
        Contestant("transformers-bf16", functools.partial(_transformers, dtype="bfloat16"), 2, ("transformers",)),
        Contestant("llama.cpp-f32", _llama_cpp, 4, ("xllamacpp", "gguf"), gguf="f32", batches=False),
        Contestant("llama.cpp-f16", _llama_cpp, 2, ("xllamacpp", "gguf"), gguf="f16", batches=False),
        Contestant("llama.cpp-q8_0", _llama_cpp, 34 / 32, ("xllamacpp", "gguf"), gguf="q8_0", batches=False),
    )
}


def _load(job: dict[str, Any]) -> tuple[Answer, dict[str, Any]]:
    generate, about = CONTESTANTS[job["contestant"]].load(job)
    return lambda question: generate(job["prompts"][: question["batch_size"]], job["new_tokens"]), about


if __name__ == "__main__":
    serve(_load)
