"""What the options of the model change, and that they leave GPT-2 alone by default."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gpt2x.model.gpt import GPT

SHAPE = dict(vocab_size=211, n_layer=2, n_head=3, n_embd=48, context_length=16)


def make(**changes) -> GPT:
    return GPT(**SHAPE, **changes, generator=torch.Generator().manual_seed(0))


def test_an_untied_head_is_one_matrix_more_with_its_own_gradient():
    tied, untied = make(), make(tied_head=False)
    assert untied.n_parameters() - tied.n_parameters() == 211 * 48
    assert {name for name, _ in untied.named_parameters()} - {name for name, _ in tied.named_parameters()} == {"lm_head.weight"}
    tokens = torch.randint(211, (2, 16))
    loss = nn.functional.cross_entropy(untied(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    seen = torch.zeros(211, dtype=torch.bool).index_fill(0, tokens.flatten(), True)
    assert torch.all(untied.wte.weight.grad[~seen] == 0)  # a tied embedding would also be moved as the head
    assert torch.all(untied.lm_head.weight.grad.abs().sum(1) > 0)


def test_an_untied_head_with_the_embedding_s_weights_is_the_tied_model():
    tied, untied = make(), make(tied_head=False)
    untied.load_state_dict(tied.state_dict() | {"lm_head.weight": tied.wte.weight})
    tokens = torch.randint(211, (2, 16))
    assert torch.equal(tied(tokens), untied(tokens))


def test_torch_s_initialization_has_the_distributions_that_torch_s_layers_have():
    """Against the layers' own reset_parameters: bounds, spread and mean."""
    model = make(init="torch", tied_head=False)
    layer = model.h[0].mlp.c_proj
    reference = nn.Linear(layer.in_features, layer.out_features)
    bound = 1 / math.sqrt(layer.in_features)
    for mine, theirs in ((layer.weight, reference.weight), (layer.bias, reference.bias)):
        assert mine.abs().max() <= bound
        assert theirs.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(reference.weight.std().item(), rel=0.05)
    assert model.wte.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert model.wpe.weight.std().item() == pytest.approx(1.0, rel=0.1)
    assert torch.equal(model.ln_f.weight, torch.ones(48))


@pytest.mark.parametrize("init", ["gpt2", "torch"])
def test_the_weights_come_from_the_generator_alone(init):
    torch.manual_seed(1)
    first = make(init=init, tied_head=False)
    torch.manual_seed(2)
    second = make(init=init, tied_head=False)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
