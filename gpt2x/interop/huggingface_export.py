"""A model and its tokenizer as a folder that Hugging Face's transformers reads.

    config.json, model.safetensors            GPT2LMHeadModel, or GPT2ForSequenceClassification of a classifier
    generation_config.json                    which token ends a text
    tokenizer.json, tokenizer_config.json     the tokenizer, and the older vocab.json and merges.txt of a byte-level one
    README.md                                 what the model is: model_card.py

AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer and pipeline read it, and compute the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2x.errors import UserError
from gpt2x.files import check_replaceable, replacing_folder
from gpt2x.interop.bias import shift_for_bias
from gpt2x.interop.huggingface import CLASSIFIER, is_transposed
from gpt2x.interop.huggingface_tokenizer import tokenizer_files
from gpt2x.interop.huggingface_weights import KINDS
from gpt2x.model.classifier import Classifier, parts
from gpt2x.model.lora import adapted_layers
from gpt2x.tokenizer.base import Tokenizer

_WEIGHTS = "model.safetensors"
_FILES = {
    *("config.json", "generation_config.json", _WEIGHTS, "README.md"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
}
_MARK = "gpt2x"  # the weights' metadata says so: such a folder is ours to replace


def write_huggingface(
    folder: str | os.PathLike,
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    labels: Sequence[str] | None = None,
    chat_template: str | None = None,
    card: str | None = None,
) -> None:
    """Write `model`, a GPT or a Classifier, and `tokenizer` to `folder`, atomically: it is there when it is whole.

    labels         of a Classifier: its classes, in the order of the outputs
    chat_template  of a model that follows instructions: how a conversation becomes a prompt, in Jinja (chat.py)
    card           text of README.md; None: there is none

    transformers' classifier has no bias: ours is written as a shift of the final norm, whose output the head alone reads.
    Raises UserError for what cannot be represented, and where the folder holds what another program wrote.
    """
    check_is_export(folder)
    _check(model, tokenizer)
    with replacing_folder(folder) as temporary:
        files = tokenizer_files(
            tokenizer,
            context_length=parts(model)[0].context_length,
            pads=isinstance(model, Classifier),
            chat_template=chat_template,
        )
        files["config.json"] = json.dumps(_config(model, tokenizer, labels), indent=2, ensure_ascii=False) + "\n"
        if not isinstance(model, Classifier):
            ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.end_of_text)
            files["generation_config.json"] = json.dumps(ends, indent=2) + "\n"
        if card is not None:
            files["README.md"] = card
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
        _save(temporary / _WEIGHTS, _tensors(model))


def check_is_export(folder: str | os.PathLike) -> None:
    """Raise UserError if `folder` is there and is neither empty nor an earlier export."""
    check_replaceable(folder, _FILES)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not _is_ours(folder / _WEIGHTS):
        raise UserError(f"{folder} holds a model that is not of an export: name another folder, or empty it")


def _is_ours(weights: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "pt") as file:
            return _MARK in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _check(model: nn.Module, tokenizer: Tokenizer) -> None:
    if adapted_layers(model):
        raise ValueError("the model has an adapter, which would be left out: merge it first")
    gpt = parts(model)[0]
    if gpt.position != "learned":
        problem = f"the model has position={gpt.position}, and GPT-2 in transformers learned positions alone"
        raise UserError(f"Hugging Face: {problem}; train one with model.position=learned")
    if gpt.vocab_size < tokenizer.vocab_size:
        problem = f"the model has {gpt.vocab_size:,} tokens and the tokenizer {tokenizer.vocab_size:,}"
        raise UserError(f"Hugging Face: {problem}; give the tokenizer that the model was trained with")
    if isinstance(model, Classifier) and model.pooling != "last_token":
        problem = f"the classifier has task.pooling={model.pooling}, and transformers knows last_token alone"
        raise UserError(f"Hugging Face: {problem}")


def _config(model: nn.Module, tokenizer: Tokenizer, labels: Sequence[str] | None) -> dict:
    gpt, _ = parts(model)
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": gpt.vocab_size,
        "n_positions": gpt.context_length,
        "n_embd": gpt.wte.embedding_dim,
        "n_layer": len(gpt.h),
        "n_head": gpt.n_head,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": gpt.ln_f.eps,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), gpt.dropout),
        "tie_word_embeddings": gpt.lm_head is None,
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": tokenizer.end_of_text,
        "dtype": str(gpt.wte.weight.dtype).removeprefix("torch."),
    }
    if not isinstance(model, Classifier):
        return config
    if labels is None or len(labels) != model.score.out_features:
        raise ValueError(f"the classifier has {model.score.out_features} classes, and the labels are {labels}")
    return config | {
        "architectures": [CLASSIFIER],
        "pad_token_id": tokenizer.end_of_text,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """transformers' names of the parameters, and their values; a tied head is not repeated."""
    gpt, head = parts(model)
    tensors = {f"transformer.{name}": p for name, p in gpt.named_parameters() if not name.startswith("lm_head.")}
    if isinstance(model, Classifier):
        tensors["score.weight"] = head.weight
        if head.bias is not None and head.bias.any():
            tensors["transformer.ln_f.bias"] = gpt.ln_f.bias + shift_for_bias(head).to(gpt.ln_f.bias)
    elif head is not None:
        tensors["lm_head.weight"] = head.weight
    return {name: tensor.detach().T if is_transposed(name) else tensor.detach() for name, tensor in tensors.items()}


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file: its header's length, the header in JSON, the tensors.

    safetensors itself would want all of them in memory once more, as they are written, and have them read by the owner
    alone; and of equal tensors it makes unequal files, for the metadata's order is left to chance.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _MARK: "1"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the numbers are aligned
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())  # flat: a width of 1 has any stride
