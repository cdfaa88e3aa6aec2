"""Every YAML under configs/ becomes the object it describes."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from needed import needed

from gpt2x.config.compose import Composer
from gpt2x.config.compose import compose as compose_root
from gpt2x.config.instantiate import instantiate
from gpt2x.config.schema import GROUPS, BenchmarkConfig, EvaluateConfig, TrainConfig
from gpt2x.device import Device
from gpt2x.errors import UserError
from gpt2x.model.gpt import GPT
from gpt2x.sweep.search import Choices
from gpt2x.tokenizer.char import CharTokenizer
from gpt2x.tracking.tracker import Tracker

CONFIGS = Path(__file__).parent.parent.parent / "configs"
FILES = [
    (folder.name, path.stem)
    for folder in sorted(CONFIGS.iterdir())
    if folder.is_dir()
    for path in sorted(folder.glob("*.yaml"))
]
PARAMETERS = {  # of the published models (Radford et al., 2019; the paper's table 2 rounds them)
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


def compose(*overrides: str) -> TrainConfig:
    composer = Composer("train", TrainConfig)
    return composer.config(composer.read(list(overrides)))


def test_every_group_has_a_file():
    assert {group for group, _ in FILES} == {*GROUPS, "experiment"}


@pytest.mark.parametrize(("group", "choice"), FILES, ids=lambda value: value)
def test_every_file_becomes_its_object(group, choice, tmp_path, request):
    if group == "data":
        make_data(choice, tmp_path, request)
        return
    if group == "evaluation":
        make_evaluation(choice)
        return
    if group == "suite":
        config = compose_root("benchmark", BenchmarkConfig, [f"suite={choice}"])
        assert instantiate(config.suite).name == choice
        return
    config = compose(f"{group}={choice}", *needed(group, choice))
    if group == "model":
        with torch.device("meta"):
            model = instantiate(config.model, vocab_size=50257)
        assert model.n_parameters() == PARAMETERS.get(choice, model.n_parameters())
    elif group == "tokenizer":
        tokenizer = instantiate(config.tokenizer, ["the cat sat on the mat, the rat sat on the cat"] * 50)
        assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    elif group == "task":
        make_task(config, tmp_path)
    elif group == "init":
        make_init(config, choice, tmp_path)
    elif group == "finetune":
        model = instantiate(config.model, vocab_size=10)
        instantiate(config.finetune, model)
        assert any(parameter.requires_grad for parameter in model.parameters())
    elif group == "optimizer":
        model = instantiate(config.model, vocab_size=10)
        groups = instantiate(config.optimizer, model).param_groups
        assert groups[0]["lr"] == getattr(config.optimizer, "muon_lr", config.optimizer.lr)
        assert groups[-1]["lr"] == config.optimizer.lr
    elif group == "schedule":
        assert 0 < instantiate(config.schedule, total_steps=100)(0) <= 1
    elif group == "device":
        make_device(config, choice)
    elif group == "logger":
        about = dict(run_dir=tmp_path, outputs=tmp_path, config={}, name="x", job_type="train", sweep=None, overrides=[])
        config.logger.__dict__.update({"mode": "disabled"} if choice == "wandb" else {})
        assert isinstance(instantiate(config.logger, **about), Tracker)
    elif group == "sweep":
        assert instantiate(config.sweep, {"seed": Choices(("1", "2"))}, folder=tmp_path, seed=1).ask(9)
    elif group == "judge":
        judge = instantiate(config.judge, cache=tmp_path)
        assert judge.kind == choice
        assert not list(tmp_path.iterdir())
    elif group == "sampling":
        assert config.sampling.max_new_tokens > 0
    else:
        assert group == "experiment"
        assert config.name == choice


def make_device(config: TrainConfig, choice: str) -> None:
    from gpt2x.config.option import ConfigError

    try:
        config.device.check_available()
    except ConfigError as error:
        pytest.skip(f"device={choice} is refused on this machine: {error}")
    device = instantiate(config.device)
    assert isinstance(device, Device)
    with device.autocast():
        product = torch.ones(2, 2, device=device.torch_device) @ torch.ones(2, 2, device=device.torch_device)
    assert product.dtype == (torch.bfloat16 if config.device.precision == "bf16" else torch.float32)


def make_evaluation(choice: str) -> None:
    composer = Composer("evaluate", EvaluateConfig)
    config = composer.config(composer.read(["checkpoint=run", f"evaluation={choice}"]))
    if choice == "perplexity":
        model = GPT(vocab_size=2, n_layer=1, n_head=1, n_embd=1, context_length=8)
        evaluation = instantiate(config.evaluation, model, None, autocast=nullcontext, reference=lambda: model)
    elif choice == "rouge":
        evaluation = instantiate(config.evaluation, lambda prompts, sampling: [], "{} {}".format)
    elif choice == "samples":
        more = {"autocast": nullcontext, "sampling": config.sampling, "load_judge": None}
        evaluation = instantiate(config.evaluation, None, CharTokenizer.from_corpus(["abc"]), **more)
    elif choice == "judge":
        config.evaluation.folder = "judged"
        evaluation = instantiate(config.evaluation, instantiate(config.judge, cache="cache"))
    else:
        evaluation = instantiate(config.evaluation, lambda texts: [])
    assert callable(evaluation.evaluate)


def make_task(config: TrainConfig, tmp_path: Path) -> None:
    corpus = instantiate(config.data, cache=tmp_path)
    task = instantiate(config.task, CharTokenizer.from_corpus(["".join(map(chr, range(10, 127)))]), corpus.about)
    assert task.batches(corpus, context_length=1000, seed=1).batches_per_epoch > 1


def make_init(config: TrainConfig, choice: str, tmp_path: Path) -> None:
    tokenizer = CharTokenizer.from_corpus(["abc"])
    files = {"run": r"config\.yaml", "openai": r"hparams\.json", "hf": r"config\.json"}
    with torch.device("meta"):
        model = instantiate(config.model, vocab_size=tokenizer.vocab_size)
    if choice in files:
        config.init.path = str(tmp_path)
        with pytest.raises(UserError, match=files[choice]):
            instantiate(config.init, model, tokenizer)
    else:
        model = instantiate(config.model, vocab_size=tokenizer.vocab_size)
        before = model.wte.weight.clone()
        instantiate(config.init, model, tokenizer)
        assert torch.equal(model.wte.weight, before)


def make_data(choice: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    more, mirror = [], None
    if choice == "text":
        (tmp_path / "mine.txt").write_text("my own words " * 100)
        more = [f"data.path={tmp_path / 'mine.txt'}"]
    elif choice in ("records", "summaries"):
        fields = ("instruction", "input", "output") if choice == "records" else ("document", "summary")
        lines = (json.dumps({field: f"{field} {i}" for field in fields}) for i in range(40))
        (tmp_path / "mine.jsonl").write_text("\n".join(lines))
        more = [f"data.path={tmp_path / 'mine.jsonl'}"]
    elif choice == "alpaca":  # the file is too large to have here: some of its records stand for it
        demo = json.loads((request.getfixturevalue("mirror") / "alpaca_en_demo.json").read_text())
        (tmp_path / "alpaca_data.json").write_text(json.dumps([*demo, {**demo[0], "output": ""}]))
        more, mirror = ["data.sha256=null"], tmp_path
    elif choice == "table":
        rows = "".join(f"message {i},{'ab'[i % 2]}\n" for i in range(40))
        (tmp_path / "mine.csv").write_text(f"text,label\n{rows}")
        more = [f"data.path={tmp_path / 'mine.csv'}"]
    elif choice == "tinystories":
        more = ["data.file=tinystories-sample.txt"]
    config = compose(f"data={choice}", *needed("data", choice), *more)
    if config.data.url is not None and mirror is None:
        mirror = request.getfixturevalue("mirror")
    corpus = instantiate(config.data, cache=tmp_path / "cache", mirror=mirror)
    assert type(corpus).__name__ == config.data._target_.rpartition(".")[2]
    assert len(next(corpus.texts("train"))) > 0
    assert len(next(corpus.texts("val"))) > 0
    assert len(corpus.fingerprint) == 64
    assert asdict(config.data)["name"] == choice
