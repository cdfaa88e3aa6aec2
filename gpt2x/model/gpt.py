"""GPT-2: token ids go in, logits over the next token come out.

The architecture is that of Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), and
of OpenAI's code for it: a pre-norm transformer decoder with learned positions, tanh-approximated GELU and an
output head tied to the token embedding. Parameters carry OpenAI's names (wte, wpe, h.0.attn.c_attn, ...).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.model.attention import CausalSelfAttention
from gpt2x.model.cache import KVCache, LayerCache


class MLP(nn.Module):
    """Two linear layers with a GELU between them, applied to each position alone."""

    def __init__(self, *, n_embd: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        hidden = F.gelu(self.c_fc(x_BTC), approximate="tanh")
        return F.dropout(self.c_proj(hidden), self.dropout, self.training)


class Block(nn.Module):
    """One transformer layer: two normalized branches, each added to the residual stream."""

    def __init__(self, *, n_embd: int, n_head: int, context_length: int, dropout: float, attention: str):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(
            n_embd=n_embd, n_head=n_head, context_length=context_length, dropout=dropout, attention=attention
        )
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd=n_embd, dropout=dropout)

    def forward(self, x_BTC: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x_BTC = x_BTC + self.attn(self.ln_1(x_BTC), cache)
        return x_BTC + self.mlp(self.ln_2(x_BTC))


class GPT(nn.Module):
    """GPT-2 of any size.

    `vocab_size` comes from the tokenizer, the other settings from the model's config (see GPTConfig). `generator`
    is the random stream that the initial weights are drawn from. `attention` is "sdpa" or "manual": the same
    function, fast or with every matrix visible.
    """

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
    ):
        super().__init__()
        self.vocab_size, self.context_length, self.n_head, self.dropout = vocab_size, context_length, n_head, dropout
        self.shape = f"{n_layer} layers, {n_head} heads, {n_embd} wide, context {context_length}"
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(context_length, n_embd)
        self.h = nn.ModuleList(
            Block(n_embd=n_embd, n_head=n_head, context_length=context_length, dropout=dropout, attention=attention)
            for _ in range(n_layer)
        )
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = None if tied_head else nn.Linear(n_embd, vocab_size, bias=False)
        {"gpt2": self._init_gpt2, "torch": self._init_torch}[init](generator)

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

    def hidden(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """The final normalized states (B, T, C) of token ids (B, T); T is at most `context_length`.

        With a `cache` they are those of T tokens that follow what is kept there, and are kept there too.
        """
        T = tokens_BT.shape[1]
        if self.context_length < T:
            raise ValueError(f"{T} tokens do not fit the model's context of {self.context_length}")
        positions = torch.arange(T, device=tokens_BT.device) if cache is None else cache.begin(T)
        x_BTC = self.wte(tokens_BT) + self.wpe(positions)
        x_BTC = F.dropout(x_BTC, self.dropout, self.training)
        for i, block in enumerate(self.h):
            x_BTC = block(x_BTC, None if cache is None else cache.layers[i])
        return self.ln_f(x_BTC)

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for `rows` texts of up to `capacity` tokens, at most `context_length`."""
        return KVCache(
            n_layer=len(self.h),
            n_head=self.n_head,
            head_width=self.wte.embedding_dim // self.n_head,
            rows=rows,
            capacity=min(capacity, self.context_length),
            like=self.wte.weight,
        )

    def logits(self, x: Tensor) -> Tensor:
        """Scores (..., V) over the vocabulary of final states (..., C); a tied head is the token embedding itself."""
        return F.linear(x, self.wte.weight) if self.lm_head is None else self.lm_head(x)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of token ids (B, T): those at position t predict the token at t + 1."""
        return self.logits(self.hidden(tokens_BT))

    def n_parameters(self) -> int:
        """Number of distinct parameters; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def __str__(self) -> str:
        return f"{self.n_parameters():,} parameters: {self.shape}"
