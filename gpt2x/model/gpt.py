"""GPT-2: token ids go in, logits over the next token come out.

The architecture is that of Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), and
of OpenAI's code for it: a pre-norm transformer decoder with learned positions (position.py has others), tanh-approximated
GELU and an output head tied to the token embedding. Parameters carry OpenAI's names (wte, wpe, h.0.attn.c_attn, ...).
What a model may do otherwise stands in variants.py and is none of the model's by default.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2x.model import fused
from gpt2x.model.attention import CausalSelfAttention, select
from gpt2x.model.cache import KVCache, LayerCache
from gpt2x.model.config import GPT2, Variant
from gpt2x.model.position import ALiBi, Rotary
from gpt2x.model.variants import (
    NgramEmbeddings,
    ResidualMix,
    Start,
    listed,
    looks_back,
    mlp,
    norm,
    softcapped,
    value_embedding,
)


class MLP(nn.Module):
    """Two linear layers with a GELU between them, four times as wide as the states, applied to each position alone."""

    def __init__(self, *, n_embd: int, dropout: float, variant: Variant = GPT2):
        super().__init__()
        self.dropout = dropout
        n_first, self.activation, n_second = mlp(variant, n_embd)  # 4 * n_embd, gelu, 4 * n_embd
        self.c_fc = nn.Linear(n_embd, n_first, bias=variant.bias)
        self.c_proj = nn.Linear(n_second, n_embd, bias=variant.bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        hidden = self.activation(self.c_fc(x_BTC))
        return F.dropout(self.c_proj(hidden), self.dropout, self.training)


class Block(nn.Module):
    """One transformer layer: two normalized branches, each added to the residual stream.

    `fused` is set by fused.accelerate: then the same is computed there where that applies.
    """

    fused = False

    def __init__(self, *, n_embd: int, dropout: float, variant: Variant = GPT2, **attention: Any):
        """`attention` are the other settings of CausalSelfAttention."""
        super().__init__()
        self.mix = ResidualMix() if variant.residual_scalars else None
        self.ln_1 = norm(variant, n_embd)
        self.attn = CausalSelfAttention(n_embd=n_embd, dropout=dropout, variant=variant, **attention)
        self.ln_2 = norm(variant, n_embd)
        self.mlp = MLP(n_embd=n_embd, dropout=dropout, variant=variant)

    def forward(
        self,
        x_BTC: Tensor,
        cache: LayerCache | None = None,
        *,
        mask: Tensor | None = None,
        turns: Tensor | None = None,
        at_B: Tensor | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C), or (B, 1, C) with `at_B`; the arguments are those of the attention."""
        if self.mix is not None:
            x_BTC = self.mix(x_BTC, start)
        if fused.applies(self, x_BTC, plain=cache is None and mask is None and at_B is None):
            return fused.run(self, x_BTC, turns)
        branch = self.attn(self.ln_1(x_BTC), cache, mask=mask, turns=turns, at_B=at_B, start=start)
        x_BTC = branch + (x_BTC if at_B is None else select(x_BTC, at_B))
        return x_BTC + self.mlp(self.ln_2(x_BTC))


class Below(NamedTuple):
    """The states (B, T, C) that enter block `n`: all that the embeddings and the blocks before it make of the tokens."""

    n: int
    states_BTC: Tensor


class GPT(nn.Module):
    """GPT-2 of any size.

    `vocab_size` comes from the tokenizer, the other settings from the model's config (see GPTConfig). `generator`
    is the random stream that the initial weights are drawn from. `attention` is "sdpa" or "manual": the same
    function, fast or with every matrix visible. `variant` are the settings of `Variant`, by which it is not GPT-2.
    `fused` is set by fused.accelerate. With `recompute` a training step keeps only what enters each block for the backward
    pass, which computes the rest again: Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost".
    """

    fused = recompute = False

    def __init__(
        self,
        *,
        vocab_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        context_length: int,
        dropout: float = 0.0,
        tied_head: bool = True,
        init: str = "gpt2",
        attention: str = "sdpa",
        generator: torch.Generator | None = None,
        **variant: Any,
    ):
        super().__init__()
        self.variant = variant = Variant(**variant)
        if variant.n_kv_head == n_head:
            variant.n_kv_head = None  # as many as GPT-2 has
        self.vocab_size, self.context_length, self.n_head, self.dropout = vocab_size, context_length, n_head, dropout
        self.shape = f"{n_layer} layers, {n_head} heads, {n_embd} wide, context {context_length}"
        self.shape += f", {listed(variant)}" if variant != GPT2 else ""
        self.position = position = variant.position
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(context_length, n_embd) if position == "learned" else None
        self.ngrams = None
        if variant.ngram_embeddings:
            self.ngrams = NgramEmbeddings(variant.ngram_embeddings, vocab_size=vocab_size, n_embd=n_embd)
        self.rotary = Rotary(head_width=n_embd // n_head, context_length=context_length) if position == "rope" else None
        self.alibi = ALiBi(n_head=n_head) if position == "alibi" else None
        sizes = dict(n_embd=n_embd, n_head=n_head)
        self.h = nn.ModuleList(
            Block(
                **sizes,
                context_length=context_length,
                dropout=dropout,
                attention=attention,
                variant=variant,
                value=value_embedding(variant, i, **sizes, vocab_size=vocab_size, n_layer=n_layer),
            )
            for i in range(n_layer)
        )
        self.ln_f = norm(variant, n_embd)
        self.lm_head = None if tied_head else nn.Linear(n_embd, vocab_size, bias=False)
        {"gpt2": self._init_gpt2, "gpt2_zero": self._init_gpt2_zero, "torch": self._init_torch}[init](generator)

    @torch.no_grad()
    def _init_gpt2(self, generator: torch.Generator | None) -> None:
        """GPT-2's initialization: weights N(0, 0.02), positions N(0, 0.01), biases 0, norms 1.

        The projections back into the residual stream are scaled down by sqrt(2 * n_layer), the number of
        additions to it, so that its variance does not grow with depth (section 2.3 of the paper).
        """
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * len(self.h)), generator=generator)
            elif name == "wpe.weight":
                nn.init.normal_(parameter, std=0.01, generator=generator)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def _init_gpt2_zero(self, generator: torch.Generator | None) -> None:
        """The same numbers, but for those projections, which are zero: at first no block adds anything."""
        self._init_gpt2(generator)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def _init_torch(self, generator: torch.Generator | None) -> None:
        """What torch does by itself, drawn from our stream: embeddings N(0, 1), linear layers U(-1/sqrt(n), 1/sqrt(n))
        for n inputs. Its large embeddings memorize a short text in far fewer steps than GPT-2's small ones."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, generator=generator)
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                for parameter in module.parameters():
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def hidden(
        self,
        tokens_BT: Tensor,
        cache: KVCache | None = None,
        *,
        documents_BT: Tensor | None = None,
        below: Below | None = None,
        at_B: Tensor | None = None,
    ) -> Tensor:
        """The final normalized states (B, T, C) of token ids (B, T); T is at most `context_length`.

        cache         they are those of T tokens that follow what is kept there, and are kept there too
        documents_BT  which of several texts in a row each token belongs to, in ascending numbers: each text has positions
                      of its own, from 0 on, and sees nothing of the others
        below         what the lower blocks make of the tokens, where that is known already
        at_B          only the states at these positions, one a row, are wanted: (B, 1, C)
        """
        x_BTC, first, order = self._enter(tokens_BT, cache, documents_BT, below)
        for i in range(first, len(self.h)):
            kept = None if cache is None else cache.layers[i]
            if at_B is not None and i == len(self.h) - 1:  # above the last attention the other positions are of no use
                order = order | {"at_B": at_B}
            if self.recompute and self.training and torch.is_grad_enabled():
                x_BTC = checkpoint(self.h[i], x_BTC, kept, use_reentrant=False, **order)
            else:
                x_BTC = self.h[i](x_BTC, kept, **order)
        if at_B is not None and first == len(self.h):  # no block was left to do it
            x_BTC = select(x_BTC, at_B)
        return self.ln_f(x_BTC)

    def below(self, tokens_BT: Tensor, n: int, documents_BT: Tensor | None = None) -> Below:
        """What enters block `n`; see `hidden`, which goes on from there."""
        x_BTC, _, order = self._enter(tokens_BT, None, documents_BT, None)
        for block in self.h[:n]:
            x_BTC = block(x_BTC, **order)
        return Below(n, x_BTC)

    def _enter(
        self, tokens_BT: Tensor, cache: KVCache | None, documents_BT: Tensor | None, below: Below | None
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The states to begin with, the block that they enter, and what tells the attention of all blocks the order of the
        tokens, as far as it is not simply one behind the other: the one place where positions come in. With it comes what
        the blocks look back at."""
        T, device = tokens_BT.shape[1], tokens_BT.device
        if self.context_length < T:
            raise ValueError(f"{T} tokens do not fit the model's context of {self.context_length}")
        places = torch.arange(T, device=device) if cache is None else cache.begin(T)  # in the row: (T,) or (B, T)
        positions, order = places, {}
        if documents_BT is not None:
            same_BTT = documents_BT[:, :, None] == documents_BT[:, None]
            seen_BTT = same_BTT.tril()
            mask = torch.zeros(seen_BTT.shape, dtype=self.wte.weight.dtype, device=device)
            order["mask"] = mask.masked_fill(~seen_BTT, float("-inf"))[:, None]
            positions = seen_BTT.sum(-1) - 1  # a token sees itself and those of its text that stand before it
        if self.rotary is not None:
            order["turns"] = self.rotary(positions)
        if self.alibi is not None and cache is not None:
            cache.mask = self.alibi(places, cache.end)
        elif self.alibi is not None:
            order["mask"] = order.get("mask", 0) + self.alibi(places, T)
        again = looks_back(self.variant)
        if below is not None and not again:
            return below.states_BTC, below.n, order
        x_BTC = self.wte(tokens_BT)
        if self.wpe is not None:
            x_BTC = x_BTC + self.wpe(positions)
        if self.ngrams is not None:
            every_BL = tokens_BT if cache is None else cache.keep(tokens_BT)
            x_BTC = x_BTC + self.ngrams(every_BL, places.expand_as(tokens_BT), positions.expand_as(tokens_BT))
        x_BTC = F.dropout(x_BTC, self.dropout, self.training)
        if again:
            order["start"] = Start(tokens_BT, x_BTC)
        return (x_BTC, 0, order) if below is None else (below.states_BTC, below.n, order)

    @property
    def embeddings(self) -> list[nn.Embedding]:
        """What the blocks stand on: that of the tokens, that of the positions where they are learned, those of n-grams."""
        positions = [] if self.wpe is None else [self.wpe]
        return [self.wte, *positions, *([] if self.ngrams is None else self.ngrams.tables)]

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for `rows` texts of up to `capacity` tokens, at most `context_length`."""
        return KVCache(
            n_layer=len(self.h),
            n_head=self.variant.n_kv_head or self.n_head,
            head_width=self.wte.embedding_dim // self.n_head,
            rows=rows,
            capacity=min(capacity, self.context_length),
            like=self.wte.weight,
        )

    def logits(self, x: Tensor) -> Tensor:
        """Scores (..., V) over the vocabulary of final states (..., C); a tied head is the token embedding itself."""
        logits = F.linear(x, self.wte.weight) if self.lm_head is None else self.lm_head(x)
        return logits if self.variant.softcap is None else softcapped(logits, self.variant.softcap)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        documents_BT: Tensor | None = None,
        below: Below | None = None,
        wanted_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of token ids (B, T): those at position t predict the token at t + 1. See `hidden`.

        With `wanted_BT` (true or false) only those of the positions where it is true, one after another: (N, V).
        """
        x = self.hidden(tokens_BT, documents_BT=documents_BT, below=below)
        return self.logits(x if wanted_BT is None else x[wanted_BT])

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        *,
        documents_BT: Tensor | None = None,
        below: Below | None = None,
        wanted_BT: Tensor | None = None,
    ) -> Tensor:
        """Summed cross-entropy, in nats, of the logits that `forward` gives for the same arguments."""
        x = self.hidden(tokens_BT, documents_BT=documents_BT, below=below)
        x_NC, targets_N = (
            (x.flatten(0, 1), targets_BT.flatten()) if wanted_BT is None else (x[wanted_BT], targets_BT[wanted_BT])
        )
        if fused.head_applies(self, x_NC):
            weight = self.wte.weight if self.lm_head is None else self.lm_head.weight
            return fused.summed_loss(x_NC, weight, targets_N, self.variant.softcap)
        return F.cross_entropy(self.logits(x_NC).float(), targets_N, reduction="sum")

    def n_parameters(self) -> int:
        """Number of distinct parameters; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def __str__(self) -> str:
        return f"{self.n_parameters():,} parameters: {self.shape}"
