"""A tokenizer in Hugging Face's files, in and out.

    tokenizer.json           all of it: what cuts the text, the tokens, the merges
    vocab.json, merges.txt   the older two files of a byte-level one, read where there is no tokenizer.json
    tokenizer_config.json    which token ends a text, how many tokens a model takes, how a chat becomes a prompt

GPT-2's own tokenizer, byte pairs learned here and characters: all three become such files, from which transformers
makes the same ids, with one difference: to it "<|endoftext|>" in a text is the token, to us it is text as any other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.interop.pretrained import PretrainedError
from gpt2x.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tokenizer.gpt2 import GPT2Tokenizer, official_files

log = logging.getLogger(__name__)

_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
_GPT2_VOCAB_SIZE = 50257
_WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}  # cut as GPT-2 does
_CHARACTERS = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}


# -- in ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundTokenizer:
    """A folder's tokenizer: of which kind of ours, the id of its end-of-text, and what makes it."""

    kind: str
    end_of_text: int
    make: Callable[[], Tokenizer]


def inspect_tokenizer(path: Path, vocab_size: int) -> FoundTokenizer:
    """The tokenizer in folder `path`, of a model with `vocab_size` rows. Where there is none and the rows are as many as
    GPT-2's tokens, it is taken to be GPT-2's own.

    Raises PretrainedError where there is none, or one that ours cannot be.
    """
    _check_settings(path / "tokenizer_config.json")
    whole, encoder, joins = path / "tokenizer.json", path / "vocab.json", path / "merges.txt"
    if whole.is_file():
        found = _from_whole(whole)
    elif encoder.is_file() and joins.is_file():
        found = _byte_level(read_object(encoder), _read_merges(joins), encoder, joins)
    elif vocab_size == _GPT2_VOCAB_SIZE:
        found = FoundTokenizer("gpt2", _GPT2_VOCAB_SIZE - 1, GPT2Tokenizer)
    else:
        problem = "has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt"
        raise PretrainedError(f"{path}: {problem} (it would be taken for GPT-2's own with {_GPT2_VOCAB_SIZE} tokens alone)")
    if found.end_of_text >= vocab_size:
        problem = f"its tokenizer has {found.end_of_text + 1:,} tokens, and the model of config.json {vocab_size:,}"
        raise PretrainedError(f"{path}: {problem}")
    return found


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises PretrainedError where there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise PretrainedError(f"{file}: no JSON, or torn ({error})") from None
    if not isinstance(value, dict):
        raise PretrainedError(f"{file}: expected a JSON object")
    return value


def _read_merges(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{file}: cannot be read ({error})") from None
    return [line for line in lines if line and not line.startswith("#version")]


def _check_settings(file: Path) -> None:
    config = read_object(file) if file.is_file() else {}
    for name in ("add_prefix_space", "add_bos_token", "add_eos_token", "do_lower_case"):
        if config.get(name):
            raise PretrainedError(f"{file}: {name}={json.dumps(config[name])}: our tokenizers add and change nothing")
    if (name := config.get("tokenizer_class")) is not None and name not in _CLASSES:
        raise PretrainedError(f"{file}: tokenizer_class={json.dumps(name)}: expected one of {', '.join(_CLASSES)}")


def _from_whole(file: Path) -> FoundTokenizer:
    """That of tokenizer.json: whatever it says that changes what the ids are is known, or refused."""
    data = read_object(file)
    try:
        if "merges" in data["model"]:  # old versions, of which the hub's gpt2 is, do not say what that means
            data["model"].setdefault("type", "BPE")
        kind, ids = data["model"]["type"], dict(data["model"]["vocab"])
        added = {token["content"]: token["id"] for token in data.get("added_tokens") or []}
        joins = [pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"].get("merges", [])]
        for problem in _foreign(data):
            raise PretrainedError(f"{file}: {problem}, and no tokenizer of ours is like that")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PretrainedError(f"{file}: not a file of the package tokenizers ({error!r})") from None
    if END_OF_TEXT in added:
        ids[END_OF_TEXT] = added[END_OF_TEXT]
    spare = sorted(token for token, number in added.items() if number not in ids.values())
    found = _characters(ids, file) if kind == "WordLevel" else _byte_level(ids, joins, file, file)
    if not spare:
        return found

    def make() -> Tokenizer:
        log.warning("%s: the added tokens %s are not tokens here, but text as any other", file, ", ".join(spare))
        return found.make()

    return FoundTokenizer(found.kind, found.end_of_text, make)


def _foreign(data: dict[str, Any]) -> list[str]:
    """What tokenizer.json says beside tokens and merges that would give other ids than ours."""
    model, cut, last = data["model"], data.get("pre_tokenizer"), data.get("post_processor")
    problems = []
    if model["type"] == "BPE":
        cut_right = cut is not None and {**_WORDS, **cut, "trim_offsets": True} == _WORDS
        options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
        problems += [f"model.{name}={json.dumps(model[name])}" for name in options if model.get(name)]
    elif model["type"] == "WordLevel":
        cut_right = cut == _CHARACTERS
    else:
        return [f"model.type={json.dumps(model['type'])}"]
    if data.get("normalizer") is not None:
        problems.append(f"normalizer={json.dumps(data['normalizer'])}")
    if not cut_right:
        problems.append(f"pre_tokenizer={json.dumps(cut)}")
    if last is not None and last["type"] == "TemplateProcessing":
        last = None if all("Sequence" in part for part in last["single"]) else last
    if last is not None and last["type"] != "ByteLevel":
        problems.append(f"post_processor={json.dumps(last)}")
    return problems


def _byte_level(ids: dict[str, int], joins: list[str], ids_file: Path, joins_file: Path) -> FoundTokenizer:
    end = _end_of_text(ids, ids_file)
    if len(ids) == _GPT2_VOCAB_SIZE:
        official = official_files()
        lines = official["vocab.bpe"].decode("utf-8").split("\n")[1:-1]
        if lines == joins and json.loads(official["encoder.json"]) == ids:
            return FoundTokenizer("gpt2", end, GPT2Tokenizer)

    def make() -> Tokenizer:
        from gpt2x.interop.vocabulary import tokenizer_of

        return tokenizer_of(ids, joins, ids_file, joins_file)

    return FoundTokenizer("bpe", end, make)


def _characters(ids: dict[str, int], file: Path) -> FoundTokenizer:
    end = _end_of_text(ids, file)
    tokens = [token for token, _ in sorted(ids.items(), key=lambda item: item[1])][:end]
    if not all(len(token) == 1 for token in tokens) or tokens != sorted(tokens):
        raise PretrainedError(f"{file}: the tokens are not characters in the order of their code points, and no others can be")
    return FoundTokenizer("char", end, lambda: CharTokenizer("".join(tokens)))


def _end_of_text(ids: dict[str, int], file: Path) -> int:
    end = ids.get(END_OF_TEXT)
    if set(map(type, ids.values())) != {int} or sorted(ids.values()) != list(range(len(ids))) or end != len(ids) - 1:
        problem = f"the ids are not 0 to {len(ids) - 1}, of which {END_OF_TEXT} has the last"
        raise PretrainedError(f"{file}: {problem}, and such a tokenizer cannot be represented")
    return end


# -- out ---------------------------------------------------------------------------------------------------------


def tokenizer_files(
    tokenizer: Tokenizer, *, context_length: int, pads: bool = False, chat_template: str | None = None
) -> dict[str, str]:
    """The files, by their names, that make `tokenizer` in transformers.

    context_length  where it cuts if asked to: what the model takes
    pads            rows may be filled up with end-of-text, as a classifier's batches are
    chat_template   how a conversation becomes a prompt, in Jinja (chat.py)
    """
    ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT} | ({"pad_token": END_OF_TEXT} if pads else {})
    settings = {**ends, "model_max_length": context_length, "clean_up_tokenization_spaces": False}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    if isinstance(tokenizer, CharTokenizer):
        ids = {character: i for i, character in enumerate(tokenizer.characters)} | {END_OF_TEXT: tokenizer.end_of_text}
        model = {"type": "WordLevel", "vocab": ids, "unk_token": "<unknown>"}  # which is no token: unknown is an error
        files, cut, decoder = {}, _CHARACTERS, {"type": "Fuse"}
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        from gpt2x.interop.vocabulary import vocabulary_texts

        vocabulary, joins = vocabulary_texts(tokenizer)
        files, cut, decoder = {"vocab.json": vocabulary, "merges.txt": joins}, _WORDS, _WORDS
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": json.loads(vocabulary),
            "merges": joins.split("\n")[1:-1],
        }
        settings |= {"tokenizer_class": "GPT2Tokenizer", "unk_token": END_OF_TEXT, "add_prefix_space": False}
    end = {"id": tokenizer.end_of_text, "content": END_OF_TEXT, "special": True}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)],
        "normalizer": None,
        "pre_tokenizer": cut,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    return files | {
        "tokenizer.json": json.dumps(whole, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
    }
