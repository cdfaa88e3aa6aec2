"""A model in Hugging Face's form in: what its config.json says, and its weights by our names.

    config.json                     what the model is: `describe`
    model.safetensors, ...          the weights: huggingface_weights.py
    tokenizer.json, vocab.json, ... the tokenizer: huggingface_tokenizer.py

transformers' GPT2LMHeadModel, GPT2Model and GPT2ForSequenceClassification compute what our GPT and Classifier compute, but
for settings of theirs that ours do not have: a folder with one of these is refused, with the setting's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gpt2x.interop.huggingface_tokenizer import FoundTokenizer, inspect_tokenizer, read_object
from gpt2x.interop.pretrained import Description, Pretrained, PretrainedError, parameter_shapes
from gpt2x.tokenizer.base import END_OF_TEXT

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2x.interop.huggingface_weights import Stored

CLASSIFIER = "GPT2ForSequenceClassification"
_KINDS = ("GPT2LMHeadModel", "GPT2Model", CLASSIFIER)

# Every setting of transformers' GPT2Config is in one of these three; a test goes through them.
_DEFAULTS: dict[str, Any] = {  # those that are read, and what they are where the file leaves them out
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "tie_word_embeddings": True,
    "architectures": None,
    "id2label": None,
    "num_labels": 2,
    "problem_type": None,
    "pad_token_id": None,
    "eos_token_id": 50256,
}
_ALLOWED: dict[str, tuple] = {  # the values with which it computes what our model computes, the default first
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
}
_WITHOUT_EFFECT = {  # on what a trained model computes; from decoder_start_token_id on, those of older versions
    *("bos_token_id", "chunk_size_feed_forward", "dtype", "initializer_range", "label2id", "output_attentions"),
    *("output_hidden_states", "reorder_and_upcast_attn", "return_dict", "summary_activation", "summary_first_dropout"),
    *("summary_proj_to_labels", "summary_type", "summary_use_proj", "transformers_version", "use_cache", "_name_or_path"),
    *("decoder_start_token_id", "do_sample", "early_stopping", "eos_token_ids", "finetuning_task", "forced_bos_token_id"),
    *("forced_eos_token_id", "gradient_checkpointing", "is_decoder", "length_penalty", "max_length", "min_length", "n_ctx"),
    *("num_beam_groups", "num_beams", "num_return_sequences", "output_past", "predict_special_tokens", "prefix"),
    *("remove_invalid_values", "repetition_penalty", "sep_token_id", "suppress_tokens", "task_specific_params"),
    *("temperature", "tokenizer_class", "top_k", "top_p", "torch_dtype", "typical_p", "_attn_implementation", "_num_labels"),
}
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, which old versions kept among the weights
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
_SAFE = ("model*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def describe(path: Path) -> Description:
    """The model in folder `path`, by its small files alone.

    Raises PretrainedError where they are missing or torn, or speak of a model or tokenizer that ours cannot be.
    """
    return _describe(path)[0]


def read(path: Path) -> Pretrained:
    """The model in folder `path`. Raises PretrainedError where a file is missing, torn or foreign, or cannot be represented."""
    from gpt2x.interop.huggingface_weights import open_weights

    about, tokenizer = _describe(path)
    shapes = parameter_shapes(about)
    if about.labels is not None:
        shapes["score.weight"] = (len(about.labels), about.model["n_embd"])
    named = _by_our_names(open_weights(path))
    if about.labels is None and about.model["tied_head"] and (head := named.pop("lm_head.weight", None)):
        _check_tied(path, head, named.get("wte.weight", head))
    for problem, names in {
        "lacks": [name for name in shapes if name not in named],
        "holds what the model of config.json has no place for:": [name for name in named if name not in shapes],
    }.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise PretrainedError(f"{path}: {problem} {', '.join(names[:3])}{more}")
    for name, shape in shapes.items():
        named[name].check(name, shape[::-1] if is_transposed(name) else shape)
    tensors = _Tensors({name: partial(_load, named[name], is_transposed(name)) for name in shapes})
    return Pretrained(about, tensors, tokenizer.make)


def find(name: str, folder: str | Path | None = None, *, weights: bool = True) -> Path:
    """The folder `name`, or that of the model of this name on huggingface.co: NAME, OWNER/NAME, either with @REVISION.

    What is needed of it, without `weights` all but these, is fetched through huggingface_hub into its own cache, or into
    `folder`; what is there already is not fetched again. Raises PretrainedError where it cannot be had.
    """
    return Path(name) if Path(name).is_dir() else _fetched(name, folder, weights)


@cache
def _fetched(name: str, folder: str | Path | None, weights: bool) -> Path:
    """What `find` fetches; a command asks the hub once, however often it is asked."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w./-]+)?", name):
        raise PretrainedError(f"{name}: no such folder, and not the name of a model on huggingface.co")
    try:
        import huggingface_hub
    except ImportError:
        problem = "no such folder, and fetching a model from huggingface.co needs the package huggingface_hub"
        raise PretrainedError(f"{name}: {problem}\n  pip install 'gpt2x[hub]', or give a folder") from None
    repository, _, revision = name.partition("@")
    fetch = partial(huggingface_hub.snapshot_download, repository, revision=revision or None, cache_dir=folder)
    try:
        path = Path(fetch(allow_patterns=list(_FILES + _SAFE * weights)))
        if weights and not any(path.glob("model*.safetensors")):
            path = Path(fetch(allow_patterns=list(_FILES + _PICKLED)))
    except Exception as error:  # its own errors, those of the HTTP library under it, and the operating system's
        problem = f"no such folder, and it could not be had from huggingface.co: {type(error).__name__}"
        reason = " ".join(str(error).split())[:300]
        remedy = "Or give a folder with the files of such a model."
        raise PretrainedError(f"{name}: {problem}: {reason}\n  {remedy}") from error
    return path


# -- the weights -------------------------------------------------------------------------------------------------


def _load(stored: Stored, transposed: bool) -> Tensor:
    return stored.load().T if transposed else stored.load()


class _Tensors(Mapping):
    """Tensors, each of which is read when it is asked for."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]):
        self._readers = readers

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def _by_our_names(found: dict[str, Stored]) -> dict[str, Stored]:
    """The same tensors without the prefix that most folders have, and without those that are no parameters."""
    named: dict[str, Stored] = {}
    for theirs, stored in found.items():
        name = theirs.removeprefix("transformer.")
        if _MASKS.fullmatch(name):
            continue
        if name in named:
            raise PretrainedError(f"{stored.file}: holds {name} twice, with and without the prefix transformer.")
        named[name] = stored
    return named


def _check_tied(path: Path, head: Stored, embedding: Stored) -> None:
    if head.shape != embedding.shape or not head.load().equal(embedding.load()):
        problem = "is not the token embedding, though tie_word_embeddings is true"
        raise PretrainedError(f"{head.file}: lm_head.weight {problem}; set it to false in {path / 'config.json'}")


def is_transposed(name: str) -> bool:
    """Whether a parameter of ours is kept transposed there: the matrices of the layers that they call Conv1D."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


# -- config.json -------------------------------------------------------------------------------------------------


def _describe(path: Path) -> tuple[Description, FoundTokenizer]:
    config = _Config(path / "config.json")
    n_embd = config.whole("n_embd")
    n_head = config.get("n_head", f"a whole number that divides n_embd={n_embd}", lambda v: _is_whole(v, 1) and n_embd % v == 0)
    config.get("n_inner", f"null or {4 * n_embd}, four times n_embd", lambda v: v in (None, 4 * n_embd))
    kinds = config.get(
        "architectures", f"one of {', '.join(_KINDS)}", lambda v: not v or (isinstance(v, list) and v[0] in _KINDS)
    )
    vocab_size = config.whole("vocab_size")
    tokenizer = inspect_tokenizer(path, vocab_size)
    tied = config.get("tie_word_embeddings", "true or false", lambda v: isinstance(v, bool))
    labels = None
    if kinds and kinds[0] == CLASSIFIER:
        labels = _labels(config)
        tied = True  # it has no such head: a language model that begins with it ties its own
    _check_ends(config, tokenizer.end_of_text, vocab_size, classifier=labels is not None)
    about = Description(
        path=path,
        format="hf",
        model={
            "n_layer": config.whole("n_layer"),
            "n_head": n_head,
            "n_embd": n_embd,
            "context_length": config.whole("n_positions"),
            "dropout": _dropout(config),
            "tied_head": tied,
        },
        vocab_size=vocab_size,
        tokenizer=tokenizer.kind,
        labels=labels,
    )
    return about, tokenizer


class _Config:
    """The settings in a config.json, by their usual names; those that our model does not have are refused."""

    def __init__(self, file: Path):
        self.file, found = file, read_object(file)
        self.settings = {_ALIASES.get(name, name): value for name, value in found.items()}
        if "model_type" not in found:
            raise PretrainedError(f"{file}: has no model_type, so it is not of a model of transformers")
        for name, allowed in _ALLOWED.items():
            value = self.settings.get(name, allowed[0])
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
                self.refuse(name, value, f"expected {' or '.join(map(json.dumps, allowed))}; our GPT-2 computes nothing else")
        for name, value in self.settings.items():
            if value and name not in _DEFAULTS and name not in _ALLOWED and name not in _WITHOUT_EFFECT:
                problem = "unknown here, and it may change what the model computes; take it out if it does not"
                self.refuse(name, value, problem)

    def get(self, name: str, allowed: str, fits: Callable[[Any], bool]) -> Any:
        """A setting that fits, else it is refused, with what is allowed."""
        value = self.settings.get(name, _DEFAULTS[name])
        if not fits(value):
            self.refuse(name, value, f"expected {allowed}")
        return value

    def whole(self, name: str, minimum: int = 1) -> int:
        return self.get(name, f"a whole number of at least {minimum}", lambda v: _is_whole(v, minimum))

    def refuse(self, name: str, value: Any, problem: str) -> NoReturn:
        raise PretrainedError(f"{self.file}: {name}={json.dumps(value)}: {problem}")


def _is_whole(value: Any, minimum: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _dropout(config: _Config) -> float:
    def is_rate(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1

    names = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
    rates = [config.get(name, "a number of at least 0 and below 1", is_rate) for name in names]
    if len(set(rates)) > 1:
        given = " ".join(f"{name}={rate}" for name, rate in zip(names, rates, strict=True))
        raise PretrainedError(f"{config.file}: {given}: our model has one dropout for all three; make them equal there")
    return float(rates[0])


def _labels(config: _Config) -> tuple[str, ...]:
    def are_labels(value: Any) -> bool:
        if not isinstance(value, dict) or set(value) != {str(i) for i in range(len(value))} or len(value) < 2:
            return value is None
        return all(isinstance(label, str) for label in value.values()) and len(set(value.values())) == len(value)

    one_of_classes = "single_label_classification"
    config.get("problem_type", f'null or "{one_of_classes}"', lambda v: v in (None, one_of_classes))
    count = config.whole("num_labels", 2)
    named = config.get("id2label", "the names of two or more classes, all different, by the numbers 0, 1, ...", are_labels)
    return tuple(named[str(i)] for i in range(len(named))) if named else tuple(f"LABEL_{i}" for i in range(count))


def _check_ends(config: _Config, end: int, vocab_size: int, *, classifier: bool) -> None:
    """Texts must end at our end-of-text, and rows be filled up with it or with what is no token, which no text holds."""

    def ends(value: Any) -> bool:
        ids = [i for i in (value if isinstance(value, list) else [value]) if _is_whole(i) and i < vocab_size]
        return not ids or end in ids

    allowed = f"null or {end}, the tokenizer's {END_OF_TEXT}"
    if classifier:
        config.get("pad_token_id", allowed, lambda v: v is None or _is_whole(v, end))
    else:
        config.get("eos_token_id", allowed, ends)
