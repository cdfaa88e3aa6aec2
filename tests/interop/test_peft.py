"""Adapters to and from PEFT: its own library reads ours and we read its, and both compute the same."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from models import SHAPE, far_from_linear, gpt, hugging_face, some_tokens, transposed
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from gpt2x.config.option import ConfigError
from gpt2x.errors import UserError
from gpt2x.interop.peft import CONFIG, WEIGHTS, read_adapter, write_adapter
from gpt2x.model.gpt import GPT
from gpt2x.model.lora import adapted_layers, adapter_parameters, add_lora, merge
from gpt2x.training.finetune import lora

KINDS = {
    "LoRA": {},
    "rsLoRA": {"rslora": True},
    "DoRA": {"dora": True},
    "rsLoRA and DoRA": {"rslora": True, "dora": True},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
TARGETS = [["c_attn"], ["attn.c_proj", "c_fc"], ["c_attn", "c_proj", "c_fc"], ["h.1.mlp.c_proj", "h.2.attn.c_attn"]]
targets = pytest.mark.parametrize("targets", TARGETS, ids=lambda names: "+".join(names))
END = 60  # pads the rows of a classifier's batch


class Classifier(nn.Module):
    """The shape of a classifier, pooling at the last token that is no padding."""

    def __init__(self, body: GPT, *, classes: int = 3, bias: bool = True):
        super().__init__()
        self.gpt, self.score = body, nn.Linear(SHAPE["n_embd"], classes, bias=bias).to(body.wte.weight.dtype)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        last = (tokens_BT != END).int().cumsum(1).argmax(1)
        return self.score(self.gpt.hidden(tokens_BT)[torch.arange(len(last)), last])


def base(dtype: torch.dtype = torch.float64) -> GPT:
    return far_from_linear(gpt()).to(dtype).eval()


def classifier(**changes) -> Classifier:
    torch.manual_seed(7)
    return Classifier(base(), **changes).eval()


def hugging_face_classifier(model: Classifier) -> GPT2ForSequenceClassification:
    """The classifier of transformers with our body; its head starts as it likes, for the adapter brings one."""
    settings = hugging_face(model.gpt, num_labels=model.score.out_features, pad_token_id=END).config
    reference = GPT2ForSequenceClassification(settings).to(model.score.weight.dtype)
    body = {name: transposed(name, p.detach()) for name, p in model.gpt.named_parameters()}
    reference.transformer.load_state_dict(body, strict=True)
    return reference.eval()


def padded_tokens() -> torch.Tensor:
    tokens = some_tokens().clamp(max=END - 1)
    tokens[0, 9:] = tokens[1, 20:] = END
    return tokens


@torch.no_grad()
def trained(model: nn.Module, *, seed: int = 4, **changes) -> nn.Module:
    """With an adapter, as after a long training."""
    generator = torch.Generator().manual_seed(seed)
    add_lora(model, **({"rank": 4, "alpha": 6, "targets": ["c_attn", "c_proj"]} | changes), generator=generator)
    for name in adapter_parameters(model):
        parameter = model.get_parameter(name)
        if not name.endswith("lora_A"):
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def loss(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().logsumexp(-1).sin().sum()


@torch.no_grad()
def peft_adapter(folder: Path, reference: nn.Module, *, seed: int = 4, **settings) -> PeftModel:
    """An adapter made by PEFT, with nothing left at its start."""
    defaults = {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_proj"], "task_type": "CAUSAL_LM"}
    defaults["fan_in_fan_out"] = True
    made = get_peft_model(reference, LoraConfig(**defaults | settings)).to(reference.dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    made.save_pretrained(folder)
    return made


# -- ours to PEFT ------------------------------------------------------------------------------------------------


@kinds
@targets
def test_peft_computes_our_adapter(tmp_path, kind, targets):
    """Logits and the gradients of every A, B and magnitude, in float64."""
    model, tokens = trained(base(), targets=targets, **kind), some_tokens()
    write_adapter(model, tmp_path)
    peft = PeftModel.from_pretrained(hugging_face(base()), tmp_path, is_trainable=True).eval()
    theirs_logits, logits = peft(tokens).logits, model(tokens)
    assert (logits - base()(tokens)).abs().max() > 1
    torch.testing.assert_close(theirs_logits, logits, atol=1e-10, rtol=1e-10)
    loss(theirs_logits).backward()
    loss(logits).backward()
    grads = {name.replace(".default", ""): p.grad for name, p in peft.named_parameters() if p.requires_grad}
    for name in adapter_parameters(model):
        grad = model.get_parameter(name).grad
        theirs = f"base_model.model.transformer.{name}.weight".replace("magnitude", "lora_magnitude_vector")
        assert grad.abs().max() > 1e-3
        torch.testing.assert_close(grads.pop(theirs), grad, atol=1e-9, rtol=1e-9)
    assert not grads


@kinds
def test_peft_computes_our_adapter_in_float32_merged_too(tmp_path, kind):
    """The logits are of sizes up to a hundred: 1e-3 is a few of float32's roundings in three layers."""
    model, tokens = trained(base(torch.float32), **kind), some_tokens()
    write_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(hugging_face(base(torch.float32)), tmp_path)
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=1e-3, rtol=1e-3)
    merge(model)
    torch.testing.assert_close(theirs.merge_and_unload()(tokens).logits, model(tokens), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
@kinds
def test_peft_computes_our_classifier(tmp_path, kind, bias):
    """Its head has no bias in transformers, and rows of different lengths are padded."""
    model = trained(classifier(bias=bias), **kind)
    write_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(hugging_face_classifier(classifier(bias=bias)), tmp_path).eval()
    torch.testing.assert_close(theirs(padded_tokens()).logits, model(padded_tokens()), atol=1e-10, rtol=1e-10)
    assert json.loads((tmp_path / CONFIG).read_text())["modules_to_save"] == (["score", "ln_f"] if bias else ["score"])


def test_auto_classes_find_the_base(tmp_path):
    model = trained(base(torch.float32), dora=True)
    hugging_face(base(torch.float32)).save_pretrained(tmp_path / "base")
    write_adapter(model, tmp_path / "adapter", base_name=str(tmp_path / "base"))
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(some_tokens()).logits, model(some_tokens()), atol=1e-3, rtol=1e-3)


def test_a_head_of_its_own_may_be_adapted(tmp_path):
    """It is no Conv1D in transformers."""
    model = far_from_linear(gpt(tied_head=False)).double().eval()
    reference = GPT2LMHeadModel(hugging_face(base(), tie_word_embeddings=False).config).double().eval()
    reference.transformer.load_state_dict(
        {name: transposed(name, p.detach()) for name, p in model.named_parameters() if name != "lm_head.weight"}
    )
    reference.lm_head.load_state_dict(model.lm_head.state_dict())
    trained(model, targets=["c_attn", "lm_head"])
    write_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(reference, tmp_path)
    torch.testing.assert_close(theirs(some_tokens()).logits, model(some_tokens()), atol=1e-10, rtol=1e-10)
    theirs.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    again = far_from_linear(gpt(tied_head=False)).double().eval()
    read_adapter(again, tmp_path / "again")
    assert torch.equal(again(some_tokens()), model(some_tokens()))


def test_a_bias_that_no_shift_equals_is_refused(tmp_path):
    model = trained(classifier(classes=SHAPE["n_embd"] + 1))
    with pytest.raises(UserError, match="no shift of its 32 inputs equals the head's bias for all 33 classes"):
        write_adapter(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_small_public_and_replaced(tmp_path):
    model = trained(base())
    write_adapter(model, tmp_path / "new", base_name="openai-community/gpt2")
    write_adapter(trained(base(), dropout=0.25), tmp_path / "new", base_name="openai-community/gpt2")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {WEIGHTS, CONFIG}
    assert stat.S_IMODE((tmp_path / "new" / WEIGHTS).stat().st_mode) & 0o444
    config = json.loads((tmp_path / "new" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == "openai-community/gpt2"
    assert config["lora_dropout"] == 0.25
    assert config["fan_in_fan_out"] is True
    assert config["target_modules"] == ["c_attn", "c_proj"]
    assert len(load_file(tmp_path / "new" / WEIGHTS)) == len(adapter_parameters(model))


def test_old_settings_never_meet_new_weights(tmp_path, monkeypatch):
    write_adapter(trained(base()), tmp_path)

    def full(path, data):
        raise OSError("no space left")

    monkeypatch.setattr("gpt2x.interop.peft.write_atomic", full)
    with pytest.raises(OSError, match="no space left"):
        write_adapter(trained(base(), alpha=7), tmp_path)
    refused(base(), tmp_path, "it has no adapter_config.json")


def test_there_must_be_an_adapter_to_write(tmp_path):
    with pytest.raises(ValueError, match="no adapter"):
        write_adapter(base(), tmp_path)


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_other_positions_than_learned_ones_are_refused_both_ways(tmp_path, position):
    model = gpt(position=position)
    peft_adapter(tmp_path / "theirs", hugging_face(base()))
    for use in (
        lambda: write_adapter(trained(gpt(position=position)), tmp_path / "ours"),
        lambda: read_adapter(model, tmp_path / "theirs"),
    ):
        with pytest.raises(UserError, match=f"the model has position={position}, and GPT-2 has position=learned"):
            use()
    assert not (tmp_path / "ours").exists()
    assert not adapted_layers(model)


# -- PEFT's to us ------------------------------------------------------------------------------------------------


@kinds
@targets
def test_we_compute_peft_s_adapter(tmp_path, kind, targets):
    settings = {f"use_{name}": value for name, value in kind.items()}
    theirs = peft_adapter(tmp_path, hugging_face(base()), target_modules=targets, lora_dropout=0.2, **settings)
    model = base()
    read_adapter(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(some_tokens()), theirs(some_tokens()).logits, atol=1e-10, rtol=1e-10)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable == adapter_parameters(model)
    assert {layer.dropout for layer in adapted_layers(model).values()} == {0.2}


@pytest.mark.parametrize("names", [r".*\.(attn\.c_proj|mlp\.c_fc)", "all-linear"])
def test_peft_s_other_ways_to_say_which_layers(tmp_path, names):
    theirs = peft_adapter(tmp_path, hugging_face(base()), target_modules=names)
    model = base()
    read_adapter(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(some_tokens()), theirs(some_tokens()).logits, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("kind", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_we_compute_peft_s_classifier(tmp_path, kind, shifted):
    theirs = peft_adapter(tmp_path, hugging_face_classifier(classifier()), task_type="SEQ_CLS", **kind)
    if shifted:  # a final norm trained along, in its bias alone, is our head's bias
        path, name = tmp_path / WEIGHTS, "base_model.model.transformer.ln_f"
        norm = theirs.base_model.model.transformer.ln_f
        with torch.no_grad():
            norm.bias.add_(torch.linspace(-1, 1, SHAPE["n_embd"]))
        own = {f"{name}.{key}": parameter.detach() for key, parameter in norm.named_parameters()}
        save_file(load_file(path) | own, path)
        change_config(tmp_path, modules_to_save=["score", "ln_f"])
    model = classifier()
    read_adapter(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(padded_tokens()), theirs(padded_tokens()).logits, atol=1e-10, rtol=1e-10)


@kinds
@targets
def test_what_we_write_we_read(tmp_path, kind, targets):
    model = trained(base(torch.float32), targets=targets, dropout=0.1, **kind)
    write_adapter(model, tmp_path)
    again = base(torch.float32)
    read_adapter(again, tmp_path)
    assert adapted_layers(again).keys() == adapted_layers(model).keys()
    assert torch.equal(again(some_tokens()), model(some_tokens()))
    assert str(again) == str(model)
    read_adapter(other := base(torch.float32), tmp_path, dropout=0.0)
    assert {layer.dropout for layer in adapted_layers(other).values()} == {0.0}


def test_a_classifier_comes_back_with_its_bias(tmp_path):
    model, again = trained(classifier()), classifier()
    write_adapter(model, tmp_path)
    with torch.no_grad():
        again.score.weight.zero_()
        again.score.bias.fill_(9)
    read_adapter(again, tmp_path)
    torch.testing.assert_close(again(padded_tokens()), model(padded_tokens()), atol=1e-10, rtol=1e-10)


# -- refusals ----------------------------------------------------------------------------------------------------


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


@pytest.fixture(scope="module")
def peft_made(tmp_path_factory) -> dict[str, bytes]:
    """An adapter's files, as PEFT wrote them."""
    folder = tmp_path_factory.mktemp("adapter")
    peft_adapter(folder, hugging_face(base()))
    return {name: (folder / name).read_bytes() for name in (WEIGHTS, CONFIG)}


@pytest.fixture
def adapter(tmp_path, peft_made) -> Path:
    for name, data in peft_made.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def refused(model: nn.Module, folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        read_adapter(model, folder)
    for word in (str(folder), *words):
        assert word in str(error.value)
    assert not adapted_layers(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, 'peft_type="IA3": expected LORA'),
        ({"peft_type": None}, "peft_type=null: expected LORA"),
        ({"bias": "all"}, 'bias="all": expected "none"'),
        ({"bias": "lora_only"}, 'bias="lora_only": expected "none"'),
        ({"rank_pattern": {"c_attn": 2}}, 'rank_pattern={"c_attn": 2} is not supported'),
        ({"alpha_pattern": {"c_attn": 2}}, 'alpha_pattern={"c_attn": 2} is not supported'),
        ({"layers_to_transform": 0}, "layers_to_transform=0 is not supported"),
        ({"lora_bias": True}, "lora_bias=true is not supported"),
        ({"a_setting_of_the_future": "x"}, 'a_setting_of_the_future="x" is not supported'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights="pissa"'),
        ({"task_type": "SEQ_CLS"}, 'task_type="SEQ_CLS": expected CAUSAL_LM'),
        ({"modules_to_save": ["wte"]}, 'modules_to_save=["wte"]: expected nothing'),
        ({"modules_to_save": "score"}, 'modules_to_save="score"'),
        ({"r": 0}, "r=0: expected a whole number"),
        ({"r": 4.0}, "r=4.0: expected a whole number"),
        ({"r": True}, "r=true: expected a whole number"),
        ({"r": 5}, "lora_A.weight is torch.float64 (4, 32), and this model needs floating-point numbers (5, 32)"),
        ({"lora_alpha": "16"}, 'lora_alpha="16": expected a number'),
        ({"lora_alpha": float("nan")}, "lora_alpha=NaN: expected a number"),
        ({"lora_dropout": 1}, "lora_dropout=1: expected a number"),
        ({"use_dora": True}, "lacks transformer.h.0.attn.c_attn.lora_magnitude_vector"),
        ({"use_dora": 1}, "use_dora=1: expected true or false"),
        ({"target_modules": ["q_proj", "c_attn"]}, "no linear layer of this model is called q_proj; there are: c_attn"),
        ({"target_modules": ["wte"]}, "no linear layer of this model is called wte"),
        ({"target_modules": ["c_attn"]}, "does not speak of or this model has no place for: transformer.h.0.attn.c_proj"),
        ({"target_modules": ["c_attn", "c_proj", "c_fc"]}, "lacks transformer.h.0.mlp.c_fc.lora_A.weight"),
        ({"target_modules": "(c_attn"}, "is no regular expression"),
        ({"target_modules": "c_attn"}, "no linear layer of this model is called c_attn"),
        ({"target_modules": None}, "target_modules=null: expected names of layers"),
        ({"target_modules": []}, "target_modules=[]: expected names of layers"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_we_do_not_compute_is_refused(adapter, changes, words):
    change_config(adapter, **changes)
    refused(base(), adapter, words)


def test_settings_without_effect_are_read_past(adapter):
    change_config(adapter, task_type=None, revision="main", inference_mode=False, peft_version="9", fan_in_fan_out=False)
    read_adapter(base(), adapter)


def test_a_folder_that_is_no_adapter_is_refused(adapter):
    refused(base(), adapter / "nowhere", "it has no adapter_config.json")
    (adapter / CONFIG).write_text("{")
    refused(base(), adapter, "cannot be read")
    (adapter / CONFIG).write_text("[]")
    refused(base(), adapter, "expected a JSON object")


def test_torn_and_unsafe_weights_are_refused(adapter):
    whole = (adapter / WEIGHTS).read_bytes()
    for data in (b"", whole[:4], whole[:-1], whole[:200]):
        (adapter / WEIGHTS).write_bytes(data)
        refused(base(), adapter, WEIGHTS, "torn")
    (adapter / WEIGHTS).unlink()
    refused(base(), adapter, "has no adapter_model.safetensors")
    (adapter / "adapter_model.bin").write_bytes(whole)
    refused(base(), adapter, "adapter_model.bin could run code")


def test_numbers_that_are_no_weights_are_refused(adapter):
    tensors = load_file(adapter / WEIGHTS)
    name = "base_model.model.transformer.h.2.mlp.c_proj.lora_B.weight"
    save_file(tensors | {name: tensors[name].long()}, adapter / WEIGHTS)
    refused(base(), adapter, "h.2.mlp.c_proj.lora_B.weight is torch.int64")


def test_another_shape_of_model_is_refused(adapter):
    refused(gpt(n_embd=64), adapter, "c_attn.lora_A.weight", "(4, 64)")
    refused(gpt(n_layer=2), adapter, "this model has no place for: transformer.h.2.attn.c_attn.lora_A.weight")
    refused(gpt(n_layer=4), adapter, "lacks transformer.h.3.attn.c_attn.lora_A.weight")


def test_another_task_s_adapter_is_refused(tmp_path, adapter):
    refused(classifier(), adapter, 'task_type="CAUSAL_LM": expected SEQ_CLS')
    write_adapter(trained(classifier()), tmp_path / "ours")
    refused(base(), tmp_path / "ours", 'task_type="SEQ_CLS": expected CAUSAL_LM')
    refused(classifier(classes=5), tmp_path / "ours", "score.weight", "(5, 32)")
    refused(classifier(bias=False), tmp_path / "ours", "no bias to keep that in")
    tensors = load_file(tmp_path / "ours" / WEIGHTS)
    tensors["base_model.model.transformer.ln_f.weight"] += 0.1
    save_file(tensors, tmp_path / "ours" / WEIGHTS)
    refused(classifier(), tmp_path / "ours", "only a shift of its bias")


def test_another_base_is_refused_where_the_adapter_names_its_own(tmp_path):
    write_adapter(trained(base()), tmp_path)
    other = base()
    with torch.no_grad():
        other.h[1].ln_2.bias[3] += 1e-9
    refused(other, tmp_path, "belongs to another base")
    read_adapter(base(), tmp_path)


# -- finetune=lora -----------------------------------------------------------------------------------------------

SETTINGS = dict(rank=4, alpha=6.0, dropout=0.0, rslora=False, dora=False, targets=["c_attn", "c_proj"], adapter=None)


def test_finetuning_starts_from_an_adapter(adapter):
    model, new = base(), base()
    lora(model, **SETTINGS | {"adapter": str(adapter), "dropout": 0.1, "targets": ["c_attn", "attn.c_proj", "mlp.c_proj"]})
    read_adapter(same := base(), adapter)
    assert torch.equal(model(some_tokens()), same(some_tokens()))
    assert {layer.dropout for layer in adapted_layers(model).values()} == {0.1}
    lora(new, **SETTINGS, generator=torch.Generator().manual_seed(1))
    assert torch.equal(new(some_tokens()), base()(some_tokens()))
    assert adapter_parameters(new) == adapter_parameters(model)


def test_settings_other_than_the_adapter_s_are_refused_with_what_to_add(adapter):
    settings = SETTINGS | {"adapter": str(adapter), "rank": 8, "dora": True, "targets": ["c_attn"]}
    with pytest.raises(ConfigError) as error:
        lora(base(), **settings)
    assert error.value.key == "finetune.rank"
    assert error.value.remedy == "add finetune.rank=4 finetune.dora=false finetune.targets=[c_attn,c_proj]"
    with pytest.raises(ConfigError) as error:
        lora(base(), **SETTINGS | {"targets": ["q_proj"]})
    assert error.value.key == "finetune.targets"
