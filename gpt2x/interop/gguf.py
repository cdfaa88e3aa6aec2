"""A model and its tokenizer as one GGUF file, the format of llama.cpp and what is built on it.

The `gguf` package writes the container; which keys and tensors make a GPT-2 is llama.cpp's "gpt2" architecture. Read
back, it computes our model's logits up to llama.cpp's own roundings (its GELU is a table in fp16).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from gpt2x.errors import UserError
from gpt2x.files import replacing
from gpt2x.model.gpt import GPT
from gpt2x.model.lora import adapted_layers
from gpt2x.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2x.tokenizer.byte_level import ByteLevelTokenizer
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import byte_letters

WEIGHTS = ("f32", "f16", "q8_0")
Q8_0_BLOCK = 32  # weights of a row that share a scale


def write_gguf(
    path: str | os.PathLike,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    weights: str = "f32",
    name: str | None = None,
    description: str | None = None,
    chat_template: str | None = None,
) -> None:
    """Write `model`, as it was trained, and `tokenizer` to `path`, atomically.

    weights        what matrices are kept as: "f32", "f16" or "q8_0" (8 bits and a scale for every 32 weights). Vectors and
                   the positions stay f32.
    name, description
                   what the file says of itself, which llama.cpp shows when it loads it
    chat_template  how a conversation becomes a prompt, in Jinja (chat.py); without one llama.cpp takes another model's

    A model with more rows than the tokenizer has tokens gets filler tokens, marked as unused. Raises UserError for what
    the format or llama.cpp cannot represent, and where the package gguf is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("writing GGUF needs the package gguf: pip install gguf") from None
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}: expected one of {', '.join(WEIGHTS)}")
    _check(model, tokenizer, weights)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "gpt2")
        writer.add_name(name or f"gpt2x: {model.shape}")
        if description is not None:
            writer.add_description(description)
        writer.add_file_type(
            {
                "f32": gguf.LlamaFileType.ALL_F32,
                "f16": gguf.LlamaFileType.MOSTLY_F16,
                "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
            }[weights]
        )
        writer.add_context_length(model.context_length)
        writer.add_embedding_length(model.wte.embedding_dim)
        writer.add_block_count(len(model.h))
        writer.add_feed_forward_length(model.h[0].mlp.c_fc.out_features)
        writer.add_head_count(model.h[0].attn.n_head)
        writer.add_layer_norm_eps(model.ln_f.eps)
        writer.add_vocab_size(model.vocab_size)

        filler = [f"[unused{i}]" for i in range(model.vocab_size - tokenizer.vocab_size)]
        kinds = gguf.TokenType
        writer.add_tokenizer_model("gpt2")  # bytes, joined in pairs
        writer.add_tokenizer_pre("gpt-2")  # how text is cut into words; another name loads too, and cuts differently
        writer.add_token_list([*map(_letters, tokenizer.tokens), END_OF_TEXT, *filler])
        writer.add_token_types([*[kinds.NORMAL] * len(tokenizer.tokens), kinds.CONTROL, *[kinds.UNUSED] * len(filler)])
        writer.add_token_merges([" ".join(map(_letters, pair)) for pair in _joins(tokenizer)])
        # Where these two are missing llama.cpp takes token 11, a comma, for both.
        writer.add_bos_token_id(tokenizer.end_of_text)
        writer.add_eos_token_id(tokenizer.end_of_text)
        writer.add_unk_token_id(tokenizer.end_of_text)
        writer.add_add_bos_token(False)
        if chat_template is not None:
            writer.add_chat_template(chat_template)

        kind = gguf.GGMLQuantizationType[weights.upper()]
        for theirs, tensor in _tensors(model):
            array = tensor.detach().float().cpu().contiguous().numpy()
            if array.ndim == 1 or theirs == "position_embd.weight" or weights == "f32":
                writer.add_tensor(theirs, array)
            elif weights == "f16":
                writer.add_tensor(theirs, array.astype(np.float16))
            else:
                writer.add_tensor(theirs, gguf.quants.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def merges(tokenizer: ByteLevelTokenizer) -> list[tuple[bytes, bytes]]:
    """The two tokens that each longer token is joined of, in the order of their ids.

    A tokenizer knows its tokens alone; encoding a token's own bytes up to the last step shows its halves again. One
    that its own bytes never become, or not by joining two, cannot result from encoding and has none.
    """
    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    pairs = []
    for token in tokenizer.tokens:
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            first, i = min((ids.get(parts[i] + parts[i + 1], len(ids)), i) for i in range(len(parts) - 1))
            if first == len(ids):
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs


def _joins(tokenizer: Tokenizer) -> list[tuple[bytes, bytes]]:
    """What llama.cpp is to join, which begins with the bytes of a word whether they are tokens or not.

    A character of several bytes is joined from the left, one byte at a time. Its first byte says how many follow, and none
    of those begins another: nothing else is ever joined. So text of known characters becomes our tokens. An unknown
    character, which we refuse, becomes what is no token, and llama.cpp leaves it out.
    """
    if isinstance(tokenizer, CharTokenizer):
        steps = ((token[:i], token[i : i + 1]) for token in tokenizer.tokens for i in range(1, len(token)))
        joins = list(dict.fromkeys(steps))
    else:
        joins = merges(tokenizer)
    return joins or [_NEVER]


def _check(model: GPT, tokenizer: Tokenizer, weights: str) -> None:
    if adapted_layers(model):
        raise ValueError("GGUF: the model has an adapter, which would be left out: merge it first")
    if model.position != "learned":
        problem = f"the model has position={model.position}, and llama.cpp's gpt2 learned positions alone"
        raise UserError(f"GGUF: {problem}; train one with model.position=learned")
    if model.vocab_size < tokenizer.vocab_size:
        problem = f"the model has {model.vocab_size:,} tokens and the tokenizer {tokenizer.vocab_size:,}"
        raise UserError(f"GGUF: {problem}; give the tokenizer that the model was trained with")
    n_embd = model.wte.embedding_dim
    if weights == "q8_0" and n_embd % Q8_0_BLOCK:
        problem = f"q8_0 needs a width that {Q8_0_BLOCK} divides, and the model's n_embd is {n_embd}"
        raise UserError(f"GGUF: {problem}; use f16 or f32")


def _tensors(model: GPT) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's names of the model's tensors, matrices as (outputs, inputs); a tied head is not repeated."""
    yield "token_embd.weight", model.wte.weight
    yield "position_embd.weight", model.wpe.weight
    for i, block in enumerate(model.h):
        for name, module in {
            "attn_norm": block.ln_1,
            "attn_qkv": block.attn.c_attn,
            "attn_output": block.attn.c_proj,
            "ffn_norm": block.ln_2,
            "ffn_up": block.mlp.c_fc,
            "ffn_down": block.mlp.c_proj,
        }.items():
            yield f"blk.{i}.{name}.weight", module.weight
            yield f"blk.{i}.{name}.bias", module.bias
    yield "output_norm.weight", model.ln_f.weight
    yield "output_norm.bias", model.ln_f.bias
    if model.lm_head is not None:
        yield "output.weight", model.lm_head.weight


def _letters(token: bytes) -> str:
    """A token in GPT-2's printable letters."""
    return "".join(map(_LETTERS.__getitem__, token))


_LETTERS = byte_letters()
# llama.cpp loads no tokenizer without merges. This one is never made: a word begins as single bytes, and nothing joins "no".
_NEVER = (b"no", b"merges")
