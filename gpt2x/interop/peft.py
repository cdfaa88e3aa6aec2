"""An adapter as a folder that PEFT (Hugging Face's library of adapters) reads for GPT-2, and such a folder into our model.

    adapter_model.safetensors   A and B of every adapted layer, and a classifier's head
    adapter_config.json         rank, alpha, which layers, ...

transformers keeps GPT-2's matrices transposed (its Conv1D; `fan_in_fan_out` says so); A and B are the same in both.
Nothing is ever unpickled, and an adapter that would compute something else here than in PEFT is refused.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2x.errors import UserError
from gpt2x.files import write_atomic
from gpt2x.interop.bias import shift_for_bias
from gpt2x.model.lora import HEAD, adaptable_layers, adapted_layers, add_lora, base_hash, ends_with, freeze
from gpt2x.model.variants import why_not_gpt2

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_BASE = "gpt2x.base"  # the weights' metadata says here which base they belong to, where we wrote them
_PREFIX = "base_model.model."
_NORM = "ln_f"
# Settings that change nothing in what a trained adapter computes. Any other that is set must be one that we know.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "megatron_core", "peft_version",
    "qalora_group_size", "revision",
}  # fmt: skip
_KNOWN = {
    "bias", "init_lora_weights", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r", "target_modules",
    "task_type", "use_dora", "use_rslora",
}  # fmt: skip


def write_adapter(model: nn.Module, folder: str | os.PathLike, *, base_name: str | None = None) -> None:
    """Write the adapter of `model`, a GPT or a classifier around one (attributes gpt and score), to `folder`.

    PEFT reads it beside GPT2LMHeadModel or GPT2ForSequenceClassification with the weights of our base. `base_name` is
    the name or folder of that base, for AutoPeftModel. transformers' classifier takes the last token that is not
    padding, and its head has no bias: ours is written as a shift of the final norm, whose output the head alone reads.

    Raises ValueError if there is no adapter, UserError if the head's bias cannot be written so or the model is no
    GPT-2.
    """
    _check_gpt2(model)
    layers = adapted_layers(model)
    if not layers:
        raise ValueError("the model has no adapter to write")
    first = next(iter(layers.values()))
    tensors = {}
    for name, layer in layers.items():
        for ours, theirs in _NAMES.items():
            if getattr(layer, ours) is not None:
                tensors[f"{_peft_name(name)}.{theirs}"] = getattr(layer, ours)
    saved = None
    if _is_classifier(model):
        saved = [HEAD]
        tensors[f"{HEAD}.weight"] = model.score.weight
        if model.score.bias is not None and model.score.bias.any():
            saved.append(_NORM)
            norm = model.gpt.ln_f
            tensors[f"transformer.{_NORM}.weight"] = norm.weight
            tensors[f"transformer.{_NORM}.bias"] = norm.bias + shift_for_bias(model.score).to(norm.bias)
    config = {
        "peft_type": "LORA",
        "task_type": _task(model),
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": int(first.alpha) if first.alpha == int(first.alpha) else first.alpha,
        "lora_dropout": first.dropout,
        "use_rslora": first.rslora,
        "use_dora": first.magnitude is not None,
        "target_modules": _targets(model, set(layers)),
        "modules_to_save": saved,
        "fan_in_fan_out": True,
        "bias": "none",
        "init_lora_weights": True,
    }
    from safetensors.torch import save

    tensors = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    Path(folder, CONFIG).unlink(missing_ok=True)  # without it it is no adapter: old settings never meet new weights
    write_atomic(Path(folder, WEIGHTS), save(tensors, metadata={"format": "pt", _BASE: base_hash(model)}))
    write_atomic(Path(folder, CONFIG), json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def read_adapter(model: nn.Module, folder: str | os.PathLike, *, dropout: float | None = None) -> None:
    """Add the adapter in `folder` to `model`, which is frozen but for it and a classifier's head; both are read.

    `dropout` takes the place of the adapter's own, which says how it was trained.

    Raises UserError where the folder holds no whole adapter, or one that is not for this model (another task, other
    layers or shapes, another base where it names its base), or one of a kind that we do not compute. Then the model
    has no adapter.
    """
    settings = adapter_settings(model, folder)
    tensors, base = _read_weights(folder)
    _check_tensors(model, Path(folder), settings, tensors)
    freeze(model)
    if base not in (None, base_hash(model)):
        problem = "belongs to another base: the frozen weights of this model are not those it was trained beside"
        raise UserError(f"{folder}: the adapter {problem}")
    head = _read_head(model, folder, tensors) if _is_classifier(model) else {}
    add_lora(model, **settings | ({} if dropout is None else {"dropout": dropout}))
    for name, layer in adapted_layers(model).items():
        for ours, theirs in _NAMES.items():
            if getattr(layer, ours) is not None:
                getattr(layer, ours).copy_(tensors[f"{_peft_name(name)}.{theirs}"])
    for name, tensor in head.items():
        getattr(model.score, name).copy_(tensor)


def adapter_settings(model: nn.Module, folder: str | os.PathLike) -> dict[str, Any]:
    """What `add_lora` needs to know of the adapter in `folder`: rank, alpha, dropout, rslora, dora and targets.

    Raises UserError where it is not for `model`, or of a kind that we do not compute.
    """
    _check_gpt2(model)
    path = Path(folder, CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: not the folder of a PEFT adapter (it has no {CONFIG})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object")

    def get(name: str, default: Any, allowed: str, fits: Any) -> Any:
        value = config.get(name, default)
        if not fits(value):
            raise UserError(f"{path}: {name}={json.dumps(value)}: expected {allowed}")
        return value

    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    get("peft_type", None, "LORA; other kinds of adapters cannot be read", lambda v: v == "LORA")
    for name, value in config.items():
        if name not in _KNOWN | _WITHOUT_EFFECT and not (value is None or value is False or value in ([], {})):
            raise UserError(f"{path}: {name}={json.dumps(value)} is not supported; an adapter without it is needed")
    get("bias", "none", '"none": trained biases are not supported', lambda v: v == "none")
    initial = "true, false or gaussian: others train beside weights that are not the base's own"
    get("init_lora_weights", True, initial, lambda v: v in (True, False, "gaussian"))
    task, classifier = _task(model), _is_classifier(model)
    get("task_type", None, f"{task}, which is what this model is for", lambda v: v == task or (v is None and not classifier))
    saved = f"nothing but {HEAD} and {_NORM}" if classifier else "nothing: only a classifier's head is trained whole"
    whole = ["classifier", HEAD, _NORM] if classifier else []
    get("modules_to_save", None, saved, lambda v: v is None or (isinstance(v, list) and all(name in whole for name in v)))
    return {
        "rank": get("r", 8, "a whole number of at least 1", lambda v: is_number(v) and v >= 1 and isinstance(v, int)),
        "alpha": get("lora_alpha", 8, "a number above 0", lambda v: is_number(v) and v > 0),
        "dropout": get("lora_dropout", 0.0, "a number of at least 0 and below 1", lambda v: is_number(v) and 0 <= v < 1),
        "rslora": get("use_rslora", False, "true or false", lambda v: isinstance(v, bool)),
        "dora": get("use_dora", False, "true or false", lambda v: isinstance(v, bool)),
        "targets": _targets(model, _selected(model, path, config.get("target_modules"))),
    }


_NAMES = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def _check_gpt2(model: nn.Module) -> None:
    if (why := why_not_gpt2(model)) is not None:
        raise UserError(f"PEFT: {why}: in transformers an adapter would compute something else")


def _is_classifier(model: nn.Module) -> bool:
    return hasattr(model, HEAD)


def _task(model: nn.Module) -> str:
    return "SEQ_CLS" if _is_classifier(model) else "CAUSAL_LM"


def _peft_name(name: str) -> str:
    """The name of one of our modules in transformers."""
    name = name.removeprefix("gpt.")
    return name if name in (HEAD, "lm_head") else f"transformer.{name}"


def _targets(model: nn.Module, names: set[str]) -> list[str]:
    """The fewest and shortest name ends that say which layers these are, to us and to PEFT."""
    others = [name for name in adaptable_layers(model) if name not in names]
    ends = set()
    for name in names:
        parts = name.removeprefix("gpt.").split(".")
        candidates = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
        ends.add(next(end for end in candidates if not any(ends_with(other, end) for other in others)))
    return sorted(ends)


def _selected(model: nn.Module, path: Path, targets: Any) -> set[str]:
    """Names of our layers that `target_modules` selects: a list of name ends, or a regular expression for whole names."""
    names = {_peft_name(name): name for name in adaptable_layers(model)}
    if isinstance(targets, str):
        try:
            selected = {ours for theirs, ours in names.items() if re.fullmatch(targets, theirs)}
        except re.error as error:
            raise UserError(f"{path}: target_modules={targets!r} is no regular expression: {error}") from None
        missing = [] if selected else [targets]
    elif isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets):
        selected = {ours for theirs, ours in names.items() if any(ends_with(theirs, target) for target in targets)}
        missing = [target for target in targets if not any(ends_with(theirs, target) for theirs in names)]
    else:
        raise UserError(f"{path}: target_modules={json.dumps(targets)}: expected names of layers")
    if missing:
        there = sorted({name.split(".")[-1] for name in names})
        problem = f"no linear layer of this model is called {', '.join(sorted(missing))}"
        raise UserError(f"{path}: target_modules: {problem}; there are: {', '.join(there)}")
    return selected


def _read_weights(folder: str | os.PathLike) -> tuple[dict[str, Tensor], str | None]:
    """The tensors, without PEFT's prefix, and the hash of their base, if they name it."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder, WEIGHTS)
    if not path.is_file():
        unsafe = Path(folder, "adapter_model.bin").is_file()
        hint = "; adapter_model.bin could run code and is not read: save it again with safe_serialization=True"
        raise UserError(f"{folder}: the adapter has no {WEIGHTS}{hint if unsafe else ''}")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name.removeprefix(_PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, (file.metadata() or {}).get(_BASE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is torn or no safetensors file: {error}") from None


def _check_tensors(model: nn.Module, folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raise UserError unless `tensors` are exactly those of an adapter with these settings."""
    expected: dict[str, tuple[int, ...]] = {}
    rank = settings["rank"]
    for name, layer in adaptable_layers(model).items():
        if any(ends_with(name, target) for target in settings["targets"]):
            shapes = {"lora_A": (rank, layer.in_features), "lora_B": (layer.out_features, rank)}
            shapes |= {"magnitude": (layer.out_features,)} if settings["dora"] else {}
            expected |= {f"{_peft_name(name)}.{_NAMES[ours]}": shape for ours, shape in shapes.items()}
    if _is_classifier(model):
        expected[f"{HEAD}.weight"] = tuple(model.score.weight.shape)
        norm = {f"transformer.{_NORM}.{own}": tuple(p.shape) for own, p in model.gpt.ln_f.named_parameters()}
        expected |= norm if norm.keys() & tensors.keys() else {}
    for problem, names in {
        "lacks": sorted(expected.keys() - tensors.keys()),
        f"holds what {CONFIG} does not speak of or this model has no place for:": sorted(tensors.keys() - expected.keys()),
    }.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{folder / WEIGHTS} {problem} {', '.join(names[:3])}{more}")
    for name, shape in expected.items():
        found = tensors[name]
        if tuple(found.shape) != shape or not found.is_floating_point():
            problem = f"is {found.dtype} {tuple(found.shape)}, and this model needs floating-point numbers {shape}"
            raise UserError(f"{folder / WEIGHTS}: {name} {problem}")


# -- a classifier's head -----------------------------------------------------------------------------------------


def _read_head(model: nn.Module, folder: str | os.PathLike, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head's weight and bias; a shifted final norm becomes the bias, what else was done to it is refused."""
    norm, score = model.gpt.ln_f, model.score
    weight = tensors[f"{HEAD}.weight"].double()
    shift = torch.zeros_like(norm.bias, dtype=torch.float64)
    if f"transformer.{_NORM}.bias" in tensors:
        if not torch.equal(tensors[f"transformer.{_NORM}.weight"].to(norm.weight), norm.weight):
            raise UserError(f"{folder}: the adapter's {_NORM} is trained; only a shift of its bias is supported")
        shift = tensors[f"transformer.{_NORM}.bias"].double() - norm.bias.double()
    if score.bias is not None:
        return {"weight": weight, "bias": weight @ shift}
    if shift.any():
        raise UserError(f"{folder}: the adapter shifts {_NORM}, and this classifier's head has no bias to keep that in")
    return {"weight": weight}
