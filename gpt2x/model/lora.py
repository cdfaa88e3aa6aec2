"""LoRA: a trained model stays as it is, and beside chosen linear layers a small trained matrix product learns the change.

A model (GPT, or a classifier around one) comes in and is changed in place by `add_lora`; after training, `merge` turns
it back into plain layers. Parameters of the base keep their names, so that the weights of a model without an adapter
fit one with it. The methods: LoRA (Hu et al., 2021), rsLoRA (Kalajdzievski, 2023), DoRA (Liu et al., 2024).
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2x.config.option import ConfigError

HEAD = "score"  # a classifier's head; it starts random, so that there is nothing in it to keep: it is trained whole


class LoRALinear(nn.Linear):
    """A frozen linear layer (weight, bias) and its trained adapter.

    Computes x W^T + b + scale * x A^T B^T with A (rank, inputs) and B (outputs, rank); the scale is alpha / rank, or
    alpha / sqrt(rank) with `rslora`, which keeps the size of the change the same at every rank. A starts random and B
    zero, so nothing changes at first. `dropout` is applied to what goes into the adapter alone.

    With `dora` each row of W + scale * B A, one output's weights, is brought to a length (outputs,) that is learned by
    itself and starts as the length of W's row. The gradient takes the row's own length as a constant (section 4.3 of
    the paper), which saves memory at next to no loss.
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        dora: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.rank, self.alpha, self.dropout, self.rslora = rank, alpha, dropout, rslora
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)
        bound = 1 / math.sqrt(self.in_features)  # what nn.Linear itself starts with
        drawn = torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(drawn.to(self.weight))
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        self.register_parameter("magnitude", nn.Parameter(_row_lengths(self._adapted_weight())) if dora else None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        base = F.linear(x, self.weight, self.bias)
        dropping = self.training and self.dropout > 0
        adapted = F.dropout(x, self.dropout) if dropping else x
        change = F.linear(F.linear(adapted, self.lora_A), self.lora_B) * self.scale
        if self.magnitude is None:
            return base + change
        # Written as an addition to the base, like LoRA, so that a new adapter changes not even the last bit. The
        # dropout holds for the whole addition, W's part of it too.
        ratio = self.magnitude / _row_lengths(self._adapted_weight())
        product = F.linear(adapted, self.weight) if dropping or self.bias is None else base - self.bias
        return base + ((ratio - 1) * product + ratio * change).to(base.dtype)

    def merged_weight(self) -> Tensor:
        """The weight (outputs, inputs) of the plain layer that computes the same without dropout; at least in fp32."""
        adapted = self._adapted_weight()
        return adapted if self.magnitude is None else adapted * (self.magnitude.detach() / _row_lengths(adapted))[:, None]

    def _adapted_weight(self) -> Tensor:
        """W + scale * B A, without a gradient and at least in fp32."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        A, B = self.lora_A.detach().to(dtype), self.lora_B.detach().to(dtype)
        return self.weight.to(dtype) + self.scale * (B @ A)

    def extra_repr(self) -> str:
        kind = "DoRA" if self.magnitude is not None else "rsLoRA" if self.rslora else "LoRA"
        return f"{super().extra_repr()}, {kind} rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}"


def add_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    rslora: bool = False,
    dora: bool = False,
    targets: list[str],
    generator: torch.Generator | None = None,
) -> None:
    """Put an adapter beside every linear layer of `model` that one of `targets` names, and freeze the rest.

    Only the adapters are trained, and a classifier's new head. For the targets see `targeted`, for the settings
    LoRALinear. `generator` draws every A, in the order of the layers. Raises ConfigError (key "targets") for a target
    that no layer has, ValueError if the model has an adapter already.
    """
    if adapted_layers(model):
        raise ValueError("the model has an adapter already: merge it first")
    layers = targeted(model, targets)
    freeze(model)
    for name, linear in layers.items():
        settings = dict(rank=rank, alpha=alpha, dropout=dropout, rslora=rslora, dora=dora)
        model.set_submodule(name, LoRALinear(linear, **settings, generator=generator).train(linear.training))


def freeze(model: nn.Module) -> None:
    """Freeze every parameter of `model` but a classifier's head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] == HEAD)


def targeted(model: nn.Module, targets: list[str]) -> dict[str, nn.Linear]:
    """The linear layers that `targets` name, by their names: "c_proj" is every layer called so, "attn.c_proj" those of
    the attention, "h.11.mlp.c_fc" a single one. Raises ConfigError (key "targets") for one that names none."""
    layers = adaptable_layers(model)
    for target in targets:
        if not any(ends_with(name, target) for name in layers):
            kinds = {".".join(name.split(".")[-2:]) for name in layers}
            ends = sorted(kinds | {name.split(".")[-1] for name in layers})
            problem = f"no linear layer is called {target!r}; there are: {', '.join(ends)}"
            if target == HEAD and hasattr(model, HEAD):
                problem = f"{HEAD}, a classifier's head, is trained whole; there are: {', '.join(ends)}"
            raise ConfigError("targets", targets, problem, "those of a single block are such as h.0.attn.c_attn")
    return {name: layer for name, layer in layers.items() if any(ends_with(name, target) for target in targets)}


def adaptable_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer that may have an adapter, by its name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != HEAD}


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Every layer that has an adapter, by its name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def adapter_parameters(model: nn.Module) -> list[str]:
    """Names of the adapter's parameters, in the order of the model; a classifier's head is not among them."""
    return [
        f"{name}.{own}"
        for name, layer in adapted_layers(model).items()
        for own, _ in layer.named_parameters()
        if own not in ("weight", "bias")
    ]


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Make every adapted layer a plain linear layer that computes the same; nothing else changes, not what is frozen."""
    for name, layer in adapted_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.merged_weight().to(layer.weight.dtype), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain.train(layer.training))


def base_hash(model: nn.Module) -> str:
    """Hex sha256 of what stays as it was: name, type, shape and bytes of every frozen parameter, sorted by name.

    An adapter belongs to this and no other base. Which layers have adapters makes no difference.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _row_lengths(weight: Tensor) -> Tensor:
    """Lengths (outputs,) of the rows of a weight; never 0, for they are divided by."""
    return torch.linalg.vector_norm(weight, dim=1).clamp(min=torch.finfo(weight.dtype).tiny)


def ends_with(name: str, target: str) -> bool:
    """Whether the last parts of a dotted name are `target`, as PEFT matches names; "proj" is no part of "c_proj"."""
    return f".{name}".endswith(f".{target}")
