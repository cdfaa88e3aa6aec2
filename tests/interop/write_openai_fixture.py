"""Development only: let TensorFlow write a small GPT-2 as OpenAI's are, for tests/interop/fixtures/openai.

    python -m venv tf && tf/bin/pip install tensorflow-cpu==2.21.0        (1.6 GB; nothing else here needs it)
    tf/bin/python tests/interop/write_openai_fixture.py

The weights are random, drawn here, and large enough that a wrong GELU or a square matrix that is not transposed shows in
the logits. Beside the files of a checkpoint it writes what TensorFlow itself makes of them:

    tensorflow.json   of each variable, as TensorFlow reads it back: its shape and the sha256 of its bytes
    logits.npz        token ids (2, 24), and the logits (2, 24, vocabulary) that TensorFlow computes
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
import numpy as np
import tensorflow as tf

FOLDER = Path(__file__).parent / "fixtures" / "openai"
JOINS = ["Ġ t", "h e", "Ġt he"]
SHAPE = {"n_vocab": 256 + len(JOINS) + 1, "n_ctx": 32, "n_embd": 24, "n_head": 4, "n_layer": 2}
v1 = tf.compat.v1


def variable(name: str, shape: list[int], mean: float, deviation: float) -> tf.Tensor:
    seed = zlib.crc32(f"{v1.get_variable_scope().name}/{name}".encode()) >> 1  # each has values of its own
    return v1.get_variable(name, shape, initializer=v1.random_normal_initializer(mean, deviation, seed=seed))


def norm(scope: str, x: tf.Tensor) -> tf.Tensor:
    with v1.variable_scope(scope):
        g, b = variable("g", [x.shape[-1]], 1.0, 0.3), variable("b", [x.shape[-1]], 0.0, 0.3)
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-5) * g + b


def linear(scope: str, x: tf.Tensor, n: int) -> tf.Tensor:
    with v1.variable_scope(scope):
        w, b = variable("w", [1, x.shape[-1], n], 0.0, 0.3), variable("b", [n], 0.0, 0.3)
    return tf.tensordot(x, w[0], 1) + b


def attention(x: tf.Tensor) -> tf.Tensor:
    batch, time, width = x.shape
    heads = SHAPE["n_head"]
    split = tf.reshape(linear("c_attn", x, 3 * width), [batch, time, 3, heads, width // heads])
    q, k, v = tf.unstack(tf.transpose(split, [2, 0, 3, 1, 4]))
    scores = tf.matmul(q, k, transpose_b=True) / np.sqrt(width // heads)
    seen = tf.linalg.band_part(tf.ones([time, time]), -1, 0)
    weights = tf.nn.softmax(scores * seen - 1e10 * (1 - seen))
    return linear("c_proj", tf.reshape(tf.transpose(tf.matmul(weights, v), [0, 2, 1, 3]), x.shape), width)


def mlp(x: tf.Tensor) -> tf.Tensor:
    return linear("c_proj", tf.nn.gelu(linear("c_fc", x, 4 * x.shape[-1]), approximate=True), x.shape[-1])


def gpt2(tokens: tf.Tensor) -> tf.Tensor:
    wpe = variable("wpe", [SHAPE["n_ctx"], SHAPE["n_embd"]], 0.0, 0.3)
    wte = variable("wte", [SHAPE["n_vocab"], SHAPE["n_embd"]], 0.0, 0.3)
    x = tf.gather(wte, tokens) + wpe[: tokens.shape[1]]
    for layer in range(SHAPE["n_layer"]):
        with v1.variable_scope(f"h{layer}"):
            h = norm("ln_1", x)
            with v1.variable_scope("attn"):
                x += attention(h)
            h = norm("ln_2", x)
            with v1.variable_scope("mlp"):
                x += mlp(h)
    return tf.tensordot(norm("ln_f", x), wte, [[2], [1]])


def vocabulary() -> dict[str, int]:
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    return {token: i for i, token in enumerate([*tokens, *(join.replace(" ", "") for join in JOINS), "<|endoftext|>"])}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    tokens = np.random.default_rng(0).integers(SHAPE["n_vocab"], size=(2, 24))
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(1)
        with v1.variable_scope("model"):
            logits = gpt2(tf.constant(tokens))
        session.run(v1.global_variables_initializer())
        v1.train.Saver(save_relative_paths=True).save(session, str(FOLDER / "model.ckpt"), write_meta_graph=False)
        np.savez_compressed(FOLDER / "logits.npz", tokens=tokens, logits=session.run(logits))
    reader = tf.train.load_checkpoint(str(FOLDER / "model.ckpt"))
    variables = {}
    for name, shape in sorted(reader.get_variable_to_shape_map().items()):
        variables[name] = {"shape": shape, "sha256": hashlib.sha256(reader.get_tensor(name).tobytes()).hexdigest()}
    (FOLDER / "tensorflow.json").write_text(json.dumps({"version": tf.__version__, "variables": variables}, indent=1) + "\n")
    (FOLDER / "hparams.json").write_text(json.dumps(SHAPE, indent=2) + "\n")
    (FOLDER / "encoder.json").write_text(json.dumps(vocabulary()))
    (FOLDER / "vocab.bpe").write_text("\n".join(["#version: 0.2", *JOINS]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
