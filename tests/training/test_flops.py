import pytest
import torch
import torch.nn.functional as F
from models import VARIANTS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpt2x.model.gpt import GPT
from gpt2x.training import finetune
from gpt2x.training.flops import flops_per_token

SHAPE = dict(vocab_size=97, n_layer=3, n_head=4, n_embd=32, context_length=24)


def counted(model: nn.Module, rows: int, context: int) -> float:
    """The matrix products of one step, as torch counts them while they happen, for each token."""
    tokens = torch.randint(97, (rows, context + 1))
    with FlopCounterMode(display=False) as counter:
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return counter.get_total_flops() / (rows * context)


@pytest.mark.parametrize("context", [24, 7])
@pytest.mark.parametrize("tied_head", [True, False])
def test_all_trained(context, tied_head):
    model = GPT(**SHAPE, attention="manual", tied_head=tied_head)
    assert flops_per_token(model, context) == counted(model, 2, context)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_counted_as_what_it_multiplies(name):
    """But for what is made of the embeddings in block 0, where nothing lies below them that would learn from it."""
    model = GPT(**SHAPE, attention="manual", **VARIANTS[name])
    assert flops_per_token(model, 24) == counted(model, 2, 24)


def test_the_formula():
    model = GPT(**SHAPE)
    n = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and name != "wpe.weight")
    assert flops_per_token(model, 10) == 6 * n + 12 * 3 * 32 * 10


def test_frozen_blocks_cost_a_forward_pass():
    model = GPT(**SHAPE, attention="manual", tied_head=False)
    finetune.last_block(model, blocks=1)
    assert flops_per_token(model, 24) == counted(model, 2, 24)


def test_an_adapter_saves_the_gradients_of_the_weights():
    torch.manual_seed(0)
    model = GPT(**SHAPE, attention="manual")
    finetune.lora(model, rank=2, alpha=4, dropout=0.0, rslora=False, dora=False, targets=["c_attn"], adapter=None)
    frozen = sum(p.numel() for p in model.h.parameters() if p.dim() == 2 and not p.requires_grad)
    estimate = flops_per_token(model, 24)
    assert estimate == pytest.approx(counted(model, 2, 24), rel=0.1)
    assert estimate < flops_per_token(GPT(**SHAPE), 24) - frozen
