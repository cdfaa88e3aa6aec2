"""A real llama.cpp server for tests, and a tiny model for it whose answers can be held to a JSON schema."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import torch

from gpt2x.model.gpt import GPT
from gpt2x.tokenizer.bpe import BPETokenizer

# Prints its address, and ends with its input: with the test, however that ends.
SERVER = """
import json, os, sys, xllamacpp
job = json.loads(sys.argv[1])
address = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.ui = job["gguf"], job["context"], 1, False, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.hostnames, params.port = ["127.0.0.1"], 0
server = xllamacpp.Server(params)
print(server.listening_address, file=address, flush=True)
sys.stdin.read()
os._exit(0)
"""
NEVER_WRITTEN = [*b"\t\n\v\f\r ", *range(128, 256)]  # blanks, and the bytes of characters outside ASCII


@contextlib.contextmanager
def llama_server(gguf: str | os.PathLike, *, context: int = 64) -> Iterator[str]:
    """llama.cpp's own server with the model in `gguf`, in a process of its own: yields its address, http://127.0.0.1:PORT.

    It answers one request at a time, in one thread. The test is skipped where llama.cpp is not installed, and fails where
    the file cannot be loaded, with what llama.cpp says.
    """
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")
    job = json.dumps({"gguf": str(gguf), "context": context})
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-c", SERVER, job]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
        try:
            address = process.stdout.readline().decode().strip()
            if not address:
                process.wait()
                said.seek(0)
                pytest.fail(f"llama.cpp cannot load {gguf}:\n{said.read().decode(errors='replace')[-3000:]}")
            yield address
        finally:
            process.stdin.close()
            process.stdout.close()
            process.kill()
            process.wait()


def ask(address: str, path: str, question: dict | None = None) -> dict:
    """What the server answers to a POST of `question`, or to a GET where there is none."""
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the machine has
    try:
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        error.add_note(error.read().decode(errors="replace"))
        raise


@torch.no_grad()
def byte_level_model(seed: int = 0, context_length: int = 2048) -> tuple[GPT, BPETokenizer]:
    """A GPT-2 of random weights, and its tokenizer: the 256 bytes and end-of-text. As a GGUF file it has 400 KB.

    What it writes means nothing, but within a grammar, such as a JSON schema's, it comes to an end. A random model goes on
    with blanks for ever, and half of what it makes of characters outside ASCII the server's parser refuses: it writes
    neither, kept away by a channel of the last state that is the same for every text. `write_gguf(path, *byte_level_model())`
    makes the file.
    """
    tokenizer = BPETokenizer([bytes([byte]) for byte in range(256)])
    generator = torch.Generator().manual_seed(seed)
    shape = dict(n_layer=2, n_head=2, n_embd=32, context_length=context_length, tied_head=True)
    model = GPT(vocab_size=tokenizer.vocab_size, **shape, generator=generator).eval()
    model.ln_f.weight[0], model.ln_f.bias[0] = 0, 6
    model.wte.weight[:, 0] = 0
    model.wte.weight[NEVER_WRITTEN, 0] = -6
    return model, tokenizer
