"""Small models whose weights are large enough to be wrong about, and their twins in transformers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2x.model.gpt import GPT

SHAPE = {"vocab_size": 61, "n_layer": 3, "n_head": 4, "n_embd": 32, "context_length": 24}
POSITIONS = ("learned", "rope", "alibi", "none")
MODERN = dict(position="rope", norm="rmsnorm", mlp="relu2", bias=False, qk_norm=True, softcap=15.0)
VARIANTS = {  # each option of a model alone, and several together
    "norm": dict(norm="rmsnorm"),
    "relu2": dict(mlp="relu2"),
    "swiglu": dict(mlp="swiglu"),
    "bias": dict(bias=False),
    "qk_norm": dict(qk_norm=True),
    "n_kv_head": dict(n_kv_head=2),
    "softcap": dict(softcap=3.0),
    "residual_scalars": dict(residual_scalars=True),
    "table": dict(value_embeddings="table"),
    "projection": dict(value_embeddings="projection"),
    "ngrams": dict(ngram_embeddings=[5000, 40]),  # one row each of 62 * 62 pairs; many threes to a row
    "modern": MODERN,
    "all": MODERN
    | dict(mlp="swiglu", n_kv_head=1, softcap=3.0, residual_scalars=True, value_embeddings="table", ngram_embeddings=[50, 9]),
    "others": dict(
        position="alibi", mlp="relu2", n_kv_head=2, residual_scalars=True, value_embeddings="projection", ngram_embeddings=[9]
    ),
}


def gpt(seed: int = 0, **changes) -> GPT:
    return GPT(**(SHAPE | {"generator": torch.Generator().manual_seed(seed)} | changes))


@torch.no_grad()
def far_from_linear(model: GPT, seed: int = 1) -> GPT:
    """Move every parameter, biases and norms too, to where softmax and GELU are anything but linear."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif parameter.dim() == 1:  # the norms' weights
            parameter.copy_(1 + 0.3 * noise)
        else:
            parameter.mul_(10)
    return model


@torch.no_grad()
def restless(model: GPT) -> GPT:
    """A model whose likeliest text is not one token for ever: large position embeddings, if it has any, keep it moving."""
    for embedding in far_from_linear(model).embeddings[1:]:
        embedding.weight.mul_(20)
    return model.eval()


def hugging_face(model: GPT, **changes) -> GPT2LMHeadModel:
    """The model of transformers with our weights; its Conv1D holds a Linear's weight transposed."""
    settings = GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=model.context_length,
        n_embd=model.wte.embedding_dim,
        n_layer=len(model.h),
        n_head=model.h[0].attn.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
        **changes,
    )
    reference = GPT2LMHeadModel(settings).to(model.wte.weight.dtype)
    state = {f"transformer.{name}": transposed(name, p.detach()) for name, p in model.named_parameters()}
    reference.load_state_dict(state | {"lm_head.weight": model.wte.weight.detach()}, strict=True)
    return reference.eval()


def transposed(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T if name.split(".")[-2].startswith("c_") and tensor.dim() == 2 else tensor


def tokenizer_of(token_lengths: np.ndarray) -> SimpleNamespace:
    """All that a language model's task wants of a tokenizer: how many bytes each token stands for."""
    return SimpleNamespace(token_lengths=lambda: token_lengths)


def some_tokens(batch: int = 3, length: int = SHAPE["context_length"], seed: int = 2) -> torch.Tensor:
    return torch.randint(SHAPE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))
