"""How much computing training takes, by counting: the same for every computer, and so an axis to compare runs on."""

from __future__ import annotations

from torch import nn

from gpt2x.model.classifier import Classifier, parts
from gpt2x.training.finetune import frozen_blocks


def flops_per_token(model: nn.Module, context: int) -> float:
    """Floating-point operations of a training step for each token, in rows of `context` tokens; an estimate.

    Counted as by Chowdhery et al. (PaLM, 2022, appendix B): 2 for each weight of a matrix in the forward pass, 2 for the
    gradient of what enters it and 2 for its own, and of attention 4, and 8 backwards, for each position and unit of width,
    future positions included. All trained, that is 6 N + 12 L C T. What is frozen has no gradients of its own, and
    below the first trained block there are none. The head of a classifier, at one token a text, is left out; that what
    frozen layers make of a text may be computed once for all epochs does not count.
    """
    gpt, head = parts(model)
    looked_up = {module.weight for module in gpt.h.modules() if isinstance(module, nn.Embedding)}  # not multiplied with
    matrices = [[p for p in block.parameters() if p.dim() == 2 and p not in looked_up] for block in gpt.h]
    attention = 4 * gpt.wte.embedding_dim * context
    first = frozen_blocks(model)
    total = 0.0
    for i, block in enumerate(matrices):
        backward = i >= first
        total += sum(p.numel() * (2 + 2 * backward + 2 * p.requires_grad) for p in block) + attention * (1 + 2 * backward)
    if not isinstance(model, Classifier):
        p = gpt.wte.weight if head is None else head.weight
        total += p.numel() * (4 + 2 * p.requires_grad)
    return total
