"""Composition with overrides: what reaches a setting, what is stronger, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2x.config import check
from gpt2x.config.compose import Composer, compose, from_yaml, to_yaml
from gpt2x.config.instantiate import instantiate
from gpt2x.config.option import ConfigError
from gpt2x.config.schema import EvaluateConfig, GenerateConfig, TrainConfig
from gpt2x.training.config import SGDConfig

HEADER = "# @package _global_\n"

COMPOSER = Composer("train", TrainConfig)  # shared: it reads each choice of files once
CONFIG = COMPOSER.config([])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)  # Cs: surrogates are no Unicode text


def train(*overrides, config_dir=None) -> TrainConfig:
    if config_dir is None:
        return COMPOSER.config(COMPOSER.read(overrides))
    return compose("train", TrainConfig, overrides, config_dir)


def refusal(*overrides, config_dir=None) -> str:
    with pytest.raises(ConfigError) as caught:
        train(*overrides, config_dir=config_dir)
    return str(caught.value)


@pytest.fixture
def mine(tmp_path):
    """A user's own config folder: `mine("model/x.yaml", "text")` writes a file of it and returns the folder."""

    def write(name: str, text: str):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return tmp_path / "mine"

    return write


# What is stronger


def test_command_line_over_experiment_over_root_over_groups(mine):
    folder = mine("experiment/e.yaml", HEADER + "optimizer: {lr: 0.02}\nseed: 5\ntrainer: {max_steps: 7}\n")
    assert train().optimizer.lr not in (0.02, 0.03)  # the group's file
    with_experiment = train("experiment=e", "schedule.warmup_steps=0", config_dir=folder)
    assert (with_experiment.optimizer.lr, with_experiment.seed, with_experiment.trainer.max_steps) == (0.02, 5, 7)
    on_top = train("experiment=e", "schedule.warmup_steps=0", "optimizer.lr=0.03", "seed=6", config_dir=folder)
    assert (on_top.optimizer.lr, on_top.seed, on_top.trainer.max_steps) == (0.03, 6, 7)


def test_the_root_file_is_above_the_groups_and_below_the_experiment(mine):
    folder = mine(
        "root.yaml",
        "defaults: [model: nano, tokenizer: bpe, data: storybook, task: lm, optimizer: adamw, schedule: cosine, device: cpu, "
        "logger: none, sampling: creative, _self_, experiment: null]\n"
        "optimizer: {lr: 0.5}\ntrainer: {max_steps: 1000}\n",
    )
    mine("experiment/e.yaml", HEADER + "optimizer: {lr: 0.25}\n")
    assert compose("root", TrainConfig, [], folder).optimizer.lr == 0.5
    assert compose("root", TrainConfig, ["experiment=e"], folder).optimizer.lr == 0.25


def test_in_our_root_files_self_stands_after_the_groups_and_before_the_experiment():
    for name, schema in (("train", TrainConfig), ("generate", GenerateConfig), ("evaluate", EvaluateConfig)):
        entries = [next(iter(e)) if isinstance(e, dict) else e for e in _defaults_list(name)]
        place = entries.index("_self_")
        groups = {s for s in Composer(name, schema).groups if s not in ("experiment", "local")}
        assert groups <= set(entries[:place])
        assert "experiment" not in entries[:place]


def _defaults_list(name):
    from gpt2x.config.compose import CONFIG_DIR

    return yaml.safe_load((CONFIG_DIR / f"{name}.yaml").read_text())["defaults"]


def test_an_experiment_chooses_groups_and_sets_values():
    config = train("experiment=shakespeare_char_cpu")
    assert (config.data.name, config.data.stride, config.optimizer.betas) == ("shakespeare", 1, [0.9, 0.99])
    assert train("experiment=shakespeare_char_cpu", "model=micro").model.context_length == 64


# What reaches a setting


def test_every_setting_is_reached_by_a_plain_override_also_where_no_file_names_it():
    assert train("optimizer.eps=1e-7", "trainer.eval_every=3", "paths.cache=c").optimizer.eps == 1e-7
    composer = Composer("train", TrainConfig)
    composed = composer.loader.load_configuration("train", [], run_mode=None, validate_sweep_overrides=False)
    for setting in check.settings(TrainConfig, yaml.safe_load(to_yaml(train()))):
        node, _, name = setting.key.rpartition(".")
        assert name in (composed[node] if node else composed)


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_plus_changes_nothing(plus):
    assert train(f"{plus}optimizer.lr=0.5", f"{plus}model=micro", f"{plus}trainer.eval_every=7") == train(
        "optimizer.lr=0.5", "model=micro", "trainer.eval_every=7"
    )


def test_choosing_another_class_brings_its_own_settings():
    config = train("optimizer=sgd", "optimizer.nesterov=true")
    assert config.optimizer == SGDConfig(nesterov=True)
    assert config.optimizer._target_.endswith(".sgd")


def test_references_are_resolved():
    config = train("paths.outputs=elsewhere", "data=verdict")
    assert (config.paths.cache, config.name) == ("elsewhere/cache", "verdict")


def test_the_mirror_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("GPT2X_MIRROR", raising=False)
    assert train().paths.mirror is None
    monkeypatch.setenv("GPT2X_MIRROR", "/mirror")
    assert train().paths.mirror == "/mirror"


@pytest.mark.parametrize("prompt", ["Hello, world!", "It's [fine", " a=b {c} ", "42", "true", "x\\", "tab\there", 'say "hi"'])
def test_a_prompt_is_taken_as_it_is(prompt):
    assert train(f"sample_prompt={prompt}").sample_prompt == prompt
    assert compose("generate", GenerateConfig, ["checkpoint=x", f"prompt={prompt}"]).prompt == prompt


def test_a_prompt_can_still_be_null_or_quoted():
    assert train("sample_prompt=null").sample_prompt is None
    assert train("sample_prompt='null'").sample_prompt == "null"


def test_a_group_that_may_be_left_out():
    def data(*overrides):
        return compose("evaluate", EvaluateConfig, ["checkpoint=x", *overrides]).data

    assert data() is None
    assert data("data=storybook").name == "storybook"
    assert data("data=storybook", "data.val_fraction=0.5").val_fraction == 0.5


def test_a_group_that_was_left_out_is_read_back_from_a_file(tmp_path):
    config = compose("evaluate", EvaluateConfig, ["checkpoint=x"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "config.yaml", EvaluateConfig) == config


def test_settings_of_a_group_that_was_left_out_are_refused():
    with pytest.raises(ConfigError, match=r"data\.val_fraction=0\.5: belongs to a choice of data, and none is made"):
        compose("evaluate", EvaluateConfig, ["checkpoint=x", "data.val_fraction=0.5"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('{" the": -2}', {" the": -2}),
        ("{' the': -2, id:262: 1e-3}", {" the": -2, "id:262": 1e-3}),
        ("{the: 1, 262: 2}", {"the": 1, "262": 2}),
        ("'{a: 1}'", {"a": 1}),
        ('{"${x}": 1, "é#😀": 2, "\\n": 3}', {"${x}": 1, "é#😀": 2, "\n": 3}),
        ("{}", {}),
    ],
)
def test_a_mapping_is_given_as_yaml(value, expected):
    assert train(f"sampling.logit_bias={value}").sampling.logit_bias == expected


CHARACTERS = st.characters(exclude_categories=["Cs"], max_codepoint=0xFFFF)  # in JSON 6 characters each at most,
TEXTS = st.text(CHARACTERS, max_size=150)  # and 1,024 are the most that YAML takes for a key


@given(st.dictionaries(TEXTS, st.floats(-9, 9), max_size=3))
@settings(deadline=None, max_examples=30)
def test_a_mapping_may_hold_any_text(mapping):
    assert train(f"sampling.logit_bias={json.dumps(mapping)}").sampling.logit_bias == mapping


def test_a_mapping_on_the_command_line_replaces_that_of_a_file_and_a_single_key_is_added(mine):
    folder = mine("sampling/biased.yaml", 'logit_bias: {" a": 1, " b": 2}\n')
    for override, expected in [
        ("seed=1", {" a": 1, " b": 2}),
        ("sampling.logit_bias={c: 3}", {"c": 3}),
        ("sampling.logit_bias={}", {}),
        ("sampling.logit_bias.c=3", {" a": 1, " b": 2, "c": 3}),
    ]:
        assert train("sampling=biased", override, config_dir=folder).sampling.logit_bias == expected


# What is refused


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("optimizer.lrr=1", "optimizer.lr"),
        ("trainer.max_stepss=5", "trainer.max_steps"),
        ("optim.lr=1", "optimizer.lr"),
        ("lr=1", "optimizer.lr"),
        ("n_layers=3", "model.n_layer"),
        ("modle=nano", "model"),
        ("experimnt=verdict_124m", "experiment"),
        ("sede=3", "seed"),
    ],
)
def test_a_typo_is_refused_with_what_was_meant(plus, typo, meant):
    message = refusal(plus + typo)
    assert f"{typo}: no such setting; did you mean {meant}?" in message
    assert "+" not in message.replace("+" + typo, "")  # Hydra's advice: "To append to your config use +..."


def test_a_typo_in_a_file_is_refused_too(mine):
    folder = mine("experiment/e.yaml", HEADER + "trainer: {max_stepz: 7}\n")
    assert "trainer.max_stepz=7: no such setting; did you mean trainer.max_steps?" in refusal("experiment=e", config_dir=folder)


def test_a_setting_of_another_class_is_recognised():
    theirs = "this choice of optimizer has no such setting; optimizer=muon or optimizer=sgd has"
    assert f"optimizer.momentum=0.5: {theirs}" in refusal("optimizer.momentum=0.5")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=nanno", "model=nanno: no such choice; did you mean model=nano?\n  choices of model: gpt2,"),
        ("model=tinny", "model=tinny: no such choice"),
        ("experiment=verdict", "experiment=verdict: no such choice; did you mean experiment=verdict_124m?"),
        ("experiment=null", "experiment=null: no such choice"),
        ("model=5", "model=5: no such choice"),
        ("model=[nano,5]", "model"),
        ("optimizer.lr=1e-3x", "optimizer.lr=1e-3x: expected a number"),
        ("optimizer.lr=nan", "optimizer.lr=nan: expected a finite number"),
        ("optimizer.lr=-1", "optimizer.lr=-1: must be above 0 and at most 10"),
        ("trainer.max_steps=2.5", "expected a whole number or null"),
        ("data.shuffle=1", "data.shuffle=1: expected true or false"),
        ("device.type=gpu", "device.type=gpu: expected one of cpu, cuda"),
        ("trainer=5", "trainer=5: this holds several settings"),
        ("model.n_head=5", "model.n_head=5: the heads must divide the width n_embd="),
        ("model.position=rotary", "expected one of learned, rope, alibi, none"),
        ("model.n_layer.x=5", "model.n_layer={'x': 5}: expected a whole number"),
        ("trainer.max_epochs=3", "exactly one of max_steps and max_epochs"),
        ("trainer.max_steps=null", "exactly one of max_steps and max_epochs"),
        ("schedule.warmup_steps=9999", "schedule.warmup_steps=9999: the warm-up is longer than the run's trainer.max_steps="),
        ("trainer.keep_every=1", "trainer.keep_every=1: must be a multiple of"),
        ("name=a/b", "name=a/b: must be fit for a folder"),
        ("name=${data.nmae}", "data.nmae"),
        ("optimizer._target_=os.system", "optimizer._target_=os.system: a configuration may not call this"),
        ("optimizer.lr=[1,", "optimizer.lr=[1,: the value cannot be read"),
        ("nano", "nano: settings are given as key=value"),
        ("~logger", "~logger: settings are given as key=value"),
        ("logger.project=a,b", "logger.project=a,b: several values need -m, for one run each"),
        ("seed=range(1,4)", "seed=range(1,4): several values need -m"),
        ("model@other=nano", "model@other"),
        ("data=text", "data.path=null: no file given"),
        ("sampling.logit_bias=5", "sampling.logit_bias=5: expected a mapping of texts to numbers, such as {a: 1, ' b': 2}"),
        ("sampling.logit_bias={a: 1", "sampling.logit_bias={a: 1: expected a mapping"),
        ("sampling.logit_bias={a: 1, a: 2}", "sampling.logit_bias={a: 1, a: 2}: expected a mapping"),
        ("sampling.logit_bias={a:1}", "a space belongs after the colon"),
        ("sampling.logit_bias=null", "sampling.logit_bias=null: expected a mapping"),
    ],
)
def test_refused(override, message):
    text = refusal(override)
    assert message in text
    assert "use +" not in text
    assert "HYDRA" not in text


def test_rotary_positions_need_heads_of_an_even_width():
    text = refusal("model.position=rope", "model.n_embd=60", "model.n_head=20")
    assert "model.n_head=20: position=rope turns pairs of numbers, so n_embd / n_head = 3 must be even" in text
    assert "nearest numbers of heads that make it so: 10, 15, 30" in text
    odd = refusal("model.position=rope", "model.n_embd=45", "model.n_head=5")
    assert "use an even width, such as n_embd=50" in odd
    fitting = compose("train", TrainConfig, ["model.position=rope", "model.n_embd=60", "model.n_head=15"])
    assert fitting.model.position == "rope"


def test_patience_needs_something_to_watch():
    assert "trainer.patience=3: with data.val_fraction=0" in refusal("trainer.patience=3", "data.val_fraction=0")


def test_all_problems_are_named_at_once():
    message = refusal("optimizer.lrr=1", "seed=-1", "nonsense=1")
    assert [line.split("=")[0] for line in message.splitlines() if "=" in line] == ["nonsense", "seed", "optimizer.lrr"]


def test_a_group_that_another_command_has_is_refused():
    with pytest.raises(ConfigError, match="model=nano: no such setting"):
        compose("generate", GenerateConfig, ["checkpoint=x", "model=nano"])
    with pytest.raises(ConfigError, match="checkpoint must be given: the folder of a run"):
        compose("generate", GenerateConfig)


# The user's own files


def test_own_files_beside_ours(mine):
    folder = mine("optimizer/fast.yaml", "_target_: gpt2x.training.optimizer.adamw\nlr: 5e-3\n")
    assert train("optimizer=fast", config_dir=folder).optimizer.lr == 5e-3
    assert train(f"hydra.searchpath=[file://{folder}]", "optimizer=fast").optimizer.lr == 5e-3
    assert "choices of optimizer: adamw, fast, muon, sgd" in refusal("optimizer=fats", config_dir=folder)


@pytest.mark.parametrize("plus", ["", "+"])
def test_an_own_group(mine, plus):
    folder = mine("recipe/quick.yaml", HEADER + "seed: 77\n")
    assert train(f"{plus}recipe=quick", config_dir=folder).seed == 77
    assert "recipe=slow: no such choice" in refusal("recipe=slow", config_dir=folder)


@pytest.mark.parametrize(
    ("name", "text", "override", "message"),
    [
        ("experiment/e.yaml", "seed: 3\n", "experiment=e", "must start with the line: # @package _global_"),
        ("model/e.yaml", "n_layer: 3\n", "model=e", "allowed here: gpt2x.model.gpt.GPT"),
        ("model/e.yaml", "a: [1\n", "model=e", "e.yaml"),
        ("model/e.yaml", "_target_: gpt2x.model.gpt.GPT\nn_layer: 1\nn_head: 1\n", "model=e", "model.n_embd must be given"),
        ("model/e.yaml", "- 1\n", "model=e", "model"),
        (
            "experiment/e.yaml",
            HEADER + "defaults: [override /model: nanno]\n",
            "experiment=e",
            "did you mean model=nano?",
        ),
        ("experiment/e.yaml", HEADER + "defaults: [override /modle: nano]\n", "experiment=e", "modle"),
        ("experiment/e.yaml", HEADER + "resume: x\nseed: x\n", "experiment=e", "seed=x: expected a whole number"),
        (
            "experiment/e.yaml",
            HEADER + "optimizer.lr: 1\n",
            "experiment=e",
            "write it nested: optimizer: {lr: ...}",
        ),
        ("experiment/e.yaml", HEADER + "trainer: null\n", "experiment=e", "trainer"),
    ],
)
def test_a_bad_file_is_refused(mine, name, text, override, message):
    assert message in refusal(override, config_dir=mine(name, text))


def test_a_config_folder_that_is_not_there():
    with pytest.raises(ConfigError, match="--config-dir=nowhere: no such folder"):
        compose("train", TrainConfig, config_dir="nowhere")


# To YAML and back


def test_a_configuration_survives_yaml(tmp_path):
    config = train("sample_prompt=${not} a reference, \\${nor} this", "optimizer=sgd", "logger.tags=[a,b]", "optimizer.lr=1e-7")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "config.yaml", TrainConfig) == config


@given(TEXT | st.sampled_from(["1e5", "1_0", "on", "null", "2020-01-01", "0x1", ".inf", "~", "=", "<<"]), st.floats(-9, 9))
@settings(deadline=None)
def test_any_text_survives_yaml(text, number):
    config = dataclasses.replace(CONFIG, sample_prompt=text)
    config.sampling = dataclasses.replace(CONFIG.sampling, logit_bias={text: number}, stop=[text + "."])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(to_yaml(config), encoding="utf-8")
        assert from_yaml(file, TrainConfig) == config


def test_settings_that_an_older_file_lacks_get_their_defaults(tmp_path):
    data = yaml.safe_load(to_yaml(train()))
    del data["trainer"]["log_every"], data["sampling"]["top_k"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    assert from_yaml(tmp_path / "config.yaml", TrainConfig).trainer.log_every == 10


@pytest.mark.timeout(60)  # what unfolds to a hundred million items would take far longer
@pytest.mark.parametrize(
    "hostile",
    [
        "model: {_target_: os.system, command: touch pwned}",
        "model: {_target_: gpt2x.training.optimizer.adamw, lr: 1}",
        "model: {_target_: [os.system]}",
        "model: {_target_: {a: b}}",
        "_target_: os.system",
        "model: !!python/object/apply:os.system ['touch pwned']",
        "hydra: {callbacks: {x: {_target_: os.system}}}",
        "just text",
        "[1, 2]",
        "a: [1",
        "",
        "\x00",
        "[" * 100_000,
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]" for a, b in pairwise("abcdefghi")),
    ],
)
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, monkeypatch, hostile):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(hostile)
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        from_yaml("config.yaml", TrainConfig)
    assert len(str(caught.value)) < 10_000
    assert not (tmp_path / "pwned").exists()


def test_a_reference_in_a_saved_file_is_plain_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    data = yaml.safe_load(to_yaml(train())) | {"sample_prompt": "${oc.env:SECRET}"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    assert from_yaml(tmp_path / "config.yaml", TrainConfig).sample_prompt == "${oc.env:SECRET}"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        from_yaml(tmp_path / "nowhere.yaml", TrainConfig)


def test_instantiate_calls_only_what_the_schema_declares():
    config = train().optimizer
    config._target_ = "os.system"
    with pytest.raises(ValueError, match="is not one of"):
        instantiate(config)


def test_lora_without_targets_or_with_an_adapter_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"finetune.targets=\[\]: nothing would be trained"):
        compose("train", TrainConfig, ["finetune=lora", "finetune.targets=[]"])
    config = compose("train", TrainConfig, ["finetune=lora", f"finetune.adapter={tmp_path}"])
    with pytest.raises(ConfigError, match="finetune.adapter=.*: not the folder of a PEFT adapter"):
        check.check_available(config)
    (tmp_path / "adapter_config.json").write_text("{}")
    check.check_available(config)
