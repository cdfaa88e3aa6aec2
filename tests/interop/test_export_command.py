"""gpt2x-export on real runs, from the command line to a file that other programs read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from llama import ask, llama_server
from models import hugging_face
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from gpt2x.commands import export, generate
from gpt2x.commands import train as train_command
from gpt2x.tokenizer.config import CharTokenizerConfig
from gpt2x.training.config import HuggingFaceInitConfig
from gpt2x.training.load import load_run
from gpt2x.training.run import train

MESSAGES = "".join(f"{word} number {i},{label}\n" for i in range(15) for word, label in (("prize", "spam"), ("hello", "ham")))


@pytest.fixture
def base(small_run, tmp_path, monkeypatch):
    """A run of a language model, in the current folder."""
    monkeypatch.chdir(tmp_path)
    train(small_run(**{"trainer.max_steps": 4}), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapted(small_run, base, tmp_path):
    """Make a run with finetune=lora on top of it: a language model, or a classifier."""

    def make(**changes):
        lora = {"finetune._target_": "gpt2x.training.finetune.lora", "finetune.rank": 2, "finetune.dora": True}
        init = {"init._target_": "gpt2x.training.init.from_run", "init.path": str(base)}
        train(small_run(**{"trainer.max_steps": 4, **lora, **init, **changes}), tmp_path / "adapted")
        return tmp_path / "adapted"

    return make


def classifier(tmp_path) -> dict:
    (tmp_path / "messages.csv").write_text(f"text,label\n{MESSAGES}")
    data = {"data._target_": "gpt2x.data.table.TableCorpus", "data.path": str(tmp_path / "messages.csv")}
    return data | {"task._target_": "gpt2x.task.classifier.Classification"}


def test_gguf_is_read_back_with_the_merged_weights(adapted, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    run = adapted()
    assert export([f"checkpoint={run}", "format=gguf", "output=model.gguf"]) == 0
    assert "\nwrote model.gguf (" in capsys.readouterr().out
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader("model.gguf").tensors}
    merged = load_run(run).model.h[0].attn.c_attn.weight
    assert torch.equal(torch.tensor(tensors["blk.0.attn_qkv.weight"].data), merged)
    assert not torch.equal(merged, load_run(run, merged=False).model.h[0].attn.c_attn.weight)


def made(capsys, *arguments: str) -> dict:
    """What gpt2x-generate makes, greedily."""
    capsys.readouterr()
    assert generate([*arguments, "sampling=greedy", "format=jsonl", "device.threads=1"]) == 0
    return json.loads(capsys.readouterr().out)


def test_llama_cpp_writes_what_gpt2x_generate_writes(small_run, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    shape = {"model.n_embd": 32, "model.context_length": 64, "model.dropout": 0.0}
    train(small_run(**shape | {"trainer.max_steps": 60, "trainer.eval_every": 60}), tmp_path / "run")
    assert export([f"checkpoint={tmp_path / 'run'}", "format=gguf", f"output={tmp_path / 'm.gguf'}"]) == 0
    assert capsys.readouterr().out.endswith(f"Ollama   ollama create NAME -f {tmp_path / 'm.Modelfile'}\n")
    given = [f"checkpoint={tmp_path / 'run'}", "sampling.top_logprobs=2", "sampling.max_new_tokens=50"]
    same = 0
    with llama_server(tmp_path / "m.gguf") as address:
        for prompt in ("The", "Once", '"Why', "In", "She"):
            ours = made(capsys, *given, f"prompt={prompt}")
            likeliest = [sorted((one["logprob"] for one in token["top"]), reverse=True) for token in ours["logprobs"]]
            clear = next((i for i, (first, second) in enumerate(likeliest) if first - second < 0.02), len(likeliest))
            question = {"prompt": prompt, "temperature": 0, "n_predict": clear, "return_tokens": True}
            assert ask(address, "/completion", question)["tokens"] == ours["tokens"][:clear] or clear == 0
            same += clear
        assert same >= 20
        continued = {"messages": [{"role": "user", "content": "Once"}]}
        assert ask(address, "/apply-template", continued)["prompt"] == "Once"
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.get_field("general.name").contents() == "test"
    loss = load_run(tmp_path / "run").checkpoint.state["trainer"]["best"]
    said = f"context 64; trained by gpt2x on text for 60 steps; validation loss {loss:.4f}"
    assert reader.get_field("general.description").contents().endswith(said)


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """Make a run that has learned to answer "Ja.", with a template of its own; `data` are more settings of its records."""
    where = tmp_path_factory.mktemp("answering")
    template = "with_input: |\n  Q: {instruction}\n  ({input})\n  A:\nwithout_input: |\n  Q: {instruction}\n  A:\n"
    (where / "template.yaml").write_text(template)
    rows = [
        {"instruction": f"Say {word}.", "input": "a" * (1 + n % 3), "output": "Ja."} for n, word in enumerate("abcdefgh" * 8)
    ]
    (where / "records.json").write_text(json.dumps(rows))

    def make(name: str, *data: str) -> Path:
        small = ["model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.context_length=48", "device.threads=1"]
        small += [
            "logger=none",
            "tokenizer.vocab_size=280",
            "optimizer.lr=1e-2",
            "trainer.max_steps=60",
            "trainer.eval_every=60",
        ]
        tuned = ["task=instruct", "data=records", f"data.path={where / 'records.json'}", "data.drop_seen=false", *data]
        paths = [f"task.template={where / 'template.yaml'}", f"paths.outputs={where}", f"hydra.run.dir={where / name}"]
        assert train_command([*small, *tuned, *paths]) == 0
        return where / name

    return make


@pytest.mark.parametrize("constant", [False, True], ids=["many instructions", "one instruction"])
def test_an_instructed_model_is_asked_and_answers_as_by_gpt2x_generate(answering, tmp_path, capsys, constant):
    pytest.importorskip("gguf")
    data = ["data.instruction=Say it.", "data.val_fraction=0.2"] if constant else []
    run = answering("constant" if constant else "many", *data)
    assert export([f"checkpoint={run}", "format=gguf", f"output={tmp_path / 'm.gguf'}"]) == 0
    instruction = "Say it." if constant else "Say c."
    user, system = {"role": "user", "content": "aa"}, {"role": "system", "content": instruction}
    asked = [([f"instruction={instruction}", "input=aa"], [system, user])]
    if constant:
        asked.append((["input=aa"], [user]))
    else:
        asked.append((["instruction=Say b."], [{"role": "user", "content": "Say b."}]))
    with llama_server(tmp_path / "m.gguf") as address:
        for ours, theirs in asked:
            answer = made(capsys, f"checkpoint={run}", *ours)
            assert ask(address, "/apply-template", {"messages": theirs})["prompt"] == answer["prompt"]
            (choice,) = ask(address, "/v1/chat/completions", {"messages": theirs, "temperature": 0})["choices"]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("Ja.", "stop")
            assert (answer["text"], answer["finish"]) == ("Ja.", "end_of_text")
    written = (tmp_path / "m.Modelfile").read_text()
    assert "\nFROM ./m.gguf\n" in written and "Q: {{ or $system $user }}\nA:\n{{ end }}" in written
    assert ('or .System "Say it."' in written) == constant


def test_the_modelfile_has_the_name_of_the_model(base, capsys):
    pytest.importorskip("gguf")
    Path("v2.Modelfile").write_text("FROM llama3.2")
    assert export([f"checkpoint={base}", "format=gguf", "output=v2.gguf"]) == 2
    assert "v2.Modelfile is not of an export, and would be replaced" in capsys.readouterr().err
    assert Path("v2.Modelfile").read_text() == "FROM llama3.2"
    Path("v2.Modelfile").unlink()
    for output in ("v2.gguf", "v2.0", "folder/v2.Modelfile", "v2.gguf"):
        assert export([f"checkpoint={base}", "format=gguf", f"output={output}"]) == 0
    there = {str(path) for path in Path().rglob("*v2*") if path.is_file()}
    assert there == {
        "v2.gguf",
        "v2.Modelfile",
        "v2.0",
        "v2.0.Modelfile",
        "folder/v2.Modelfile",
        "folder/v2.Modelfile.Modelfile",
    }
    assert "FROM ./v2.gguf\n" in Path("v2.Modelfile").read_text()
    assert "FROM ./v2.Modelfile\n" in Path("folder/v2.Modelfile.Modelfile").read_text()


def test_a_model_of_openai_becomes_a_gguf_file(tmp_path):
    gguf = pytest.importorskip("gguf")
    folder = Path(__file__).parent / "fixtures" / "openai"
    assert export([f"checkpoint={folder}", "format=gguf", f"output={tmp_path / 'm.gguf'}"]) == 0
    reader, model = gguf.GGUFReader(tmp_path / "m.gguf"), load_run(folder).model
    assert torch.equal(torch.tensor(reader.tensors[0].data), model.wte.weight)
    assert reader.get_field("general.description").contents() == model.shape
    assert f"PARAMETER num_ctx {model.context_length}\n" in (tmp_path / "m.Modelfile").read_text()


def test_of_characters_it_is_told_what_llama_cpp_does_with_unknown_ones(small_run, tmp_path, capsys, caplog):
    pytest.importorskip("gguf")
    config = small_run(**{"trainer.max_steps": 2})
    config.tokenizer = CharTokenizerConfig()
    train(config, tmp_path / "run")
    caplog.clear()
    assert export([f"checkpoint={tmp_path / 'run'}", "format=gguf", f"output={tmp_path / 'm.gguf'}"]) == 0
    assert caplog.messages == ["llama.cpp leaves out characters that the tokenizer does not know, which gpt2x refuses"]


def test_an_adapter_is_read_by_peft_and_computes_the_same(adapted, base):
    peft = pytest.importorskip("peft")
    run = adapted()
    assert export([f"checkpoint={run}", "format=peft", "output=adapter", "base=some/base"]) == 0
    theirs = peft.PeftModel.from_pretrained(hugging_face(load_run(base).model), "adapter").eval()
    assert theirs.peft_config["default"].base_model_name_or_path == "some/base"
    ours = load_run(run).model
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-5, rtol=0)
        assert (ours(tokens) - load_run(base).model(tokens)).abs().max() > 1e-4  # it has learned something


def test_transformers_continues_a_text_as_gpt2x_generate_does(base, capsys):
    assert export([f"checkpoint={base}", "format=hf", "output=deep/model"]) == 0
    assert "wrote deep/model (" in capsys.readouterr().out
    assert generate([f"checkpoint={base}", "prompt=Once upon", "sampling=greedy", "sampling.max_new_tokens=8"]) == 0
    ours = capsys.readouterr().out.partition("\n(")[0]
    theirs = pipeline("text-generation", model="deep/model")("Once upon", max_new_tokens=8, do_sample=False)
    assert ours.startswith(theirs[0]["generated_text"])
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained("deep/model")(tokens).logits
        torch.testing.assert_close(logits, load_run(base).model(tokens), atol=1e-5, rtol=0)


def test_the_card_tells_the_run_s_figures_and_nothing_of_this_computer(base, tmp_path):
    assert export([f"checkpoint={base}", "format=hf", "output=model"]) == 0
    card = Path("model/README.md").read_text()
    result = json.loads((base / "result.json").read_text())
    assert f"| val/loss | {result['last']['val/loss']:.4f} |" in card
    assert f"| val/bpb | {result['last']['val/bpb']:.4f} |" in card
    assert "| steps | 4 |" in card
    assert result["config_hash"][:16] in card
    assert str(tmp_path) not in card
    _, front, page = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gpt2", "gpt2x"],
    }
    settings = yaml.safe_load(re.search("```yaml\n(.*?)```", page, flags=re.DOTALL)[1])
    assert settings["model"]["n_embd"] == 16
    code = re.search("```python\n(.*?)```", page, flags=re.DOTALL)[1]
    exec(code.replace("max_new_tokens=50", "max_new_tokens=2"), {})  # it does what it says, from where the folder is


def test_a_classifier_tells_the_same(adapted, tmp_path):
    """The adapter of one is merged into its base's weights."""
    run = adapted(**classifier(tmp_path))
    assert export([f"checkpoint={run}", "format=hf", "output=model"]) == 0
    loaded, texts = load_run(run), ["prize number 3", "hello", "prize"]
    wanted = loaded.task.predict(loaded.model, texts, batch_size=2)
    answers = pipeline("text-classification", model="model")(texts, batch_size=3, top_k=None)
    for answer, probabilities in zip(answers, wanted, strict=True):
        found = {entry["label"]: entry["score"] for entry in answer}
        assert [found[label] for label in loaded.task.labels] == pytest.approx(probabilities.tolist(), abs=1e-5)
    assert "pipeline_tag: text-classification" in Path("model/README.md").read_text()


def test_an_instructed_model_is_asked_in_its_template(fine_tuning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(fine_tuning("instruct", **{"trainer.max_steps": 2}), tmp_path / "run")
    assert export(["checkpoint=run", "format=hf", "output=model"]) == 0
    loaded, tokenizer = load_run("run"), AutoTokenizer.from_pretrained("model")
    chat = [{"role": "system", "content": "Sort these."}, {"role": "user", "content": "b a"}]
    prompt = loaded.task.prompt("Sort these.", "b a")
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == prompt
    assert tokenizer(prompt)["input_ids"] == loaded.tokenizer.encode(prompt).tolist()
    code = re.search("```python\n(.*?)```", Path("model/README.md").read_text(), flags=re.DOTALL)[1]
    exec(code.replace("max_new_tokens=50", "max_new_tokens=2"), {})


def test_other_positions_are_refused(small_run, tmp_path, capsys):
    train(small_run(**{"trainer.max_steps": 2, "model.position": "rope"}), tmp_path / "run")
    assert export([f"checkpoint={tmp_path / 'run'}", "format=hf", f"output={tmp_path / 'x'}"]) == 1
    assert "the model has position=rope, and GPT-2 has position=learned" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_exported_model_is_read_and_exported_and_begun_with(base, small_run):
    """init=hf and checkpoint=FOLDER read what format=hf wrote."""
    assert export([f"checkpoint={base}", "format=hf", "output=model"]) == 0
    ours, theirs = load_run(base), load_run("model")
    assert theirs.tokenizer.fingerprint == ours.tokenizer.fingerprint
    assert export(["checkpoint=model", "format=hf", "output=again"]) == 0
    assert Path("again/model.safetensors").read_bytes() == Path("model/model.safetensors").read_bytes()
    assert "val/loss" not in Path("again/README.md").read_text()
    config = small_run(**{"trainer.max_steps": 2, "optimizer.lr": 1e-12})
    config.init = HuggingFaceInitConfig(path="again")
    train(config, Path("begun"))
    begun = load_run("begun")
    for (name, parameter), (_, first) in zip(begun.model.named_parameters(), ours.model.named_parameters(), strict=True):
        torch.testing.assert_close(parameter, first, atol=1e-6, rtol=0, msg=name)


def test_an_adapter_finds_its_base_in_an_exported_folder(adapted, base):
    peft = pytest.importorskip("peft")
    run = adapted()
    assert export([f"checkpoint={base}", "format=hf", "output=model"]) == 0
    assert export([f"checkpoint={run}", "format=peft", "output=adapter", "base=model"]) == 0
    theirs, tokens = peft.AutoPeftModelForCausalLM.from_pretrained("adapter").eval(), torch.arange(16)[None]
    ours = load_run(run).model
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("make", "overrides", "said"),
    [
        ({}, ["format=gguf", "output=x.gguf"], "llama.cpp's GPT-2 has no classifier's head"),
        ({"task.pooling": "mean"}, ["format=peft", "output=x"], "has task.pooling=mean"),
        ({"task.pooling": "mean"}, ["format=hf", "output=x"], "format=hf: checkpoint="),
    ],
)
def test_what_the_other_programs_cannot_compute_is_refused(adapted, tmp_path, capsys, make, overrides, said):
    run = adapted(**classifier(tmp_path), **make)
    assert export([f"checkpoint={run}", *overrides]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / overrides[1].partition("=")[2]).exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["format=peft", "output=x"], "has no adapter\n  train one with finetune=lora"),
        (["format=peft", "output=x", "weights=f16"], "weights=f16: is for format=gguf"),
        (["format=gguf", "output=x", "base=b"], "base=b: is for format=peft"),
        (["format=gguf"], "output must be given"),
        (["format=onnx", "output=x"], "format=onnx: expected one of gguf, hf, openai, peft"),
        (["format=hf", "output=base"], "output=base: this is the checkpoint, which it would replace\n  name another folder"),
        (["format=hf", "output=base/plots"], "holds loss.png, which is not of an export: name another folder"),
        (["format=openai", "output=base/plots"], "holds loss.png, which is not of an export: name another folder"),
        (["format=gguf", "output=base/run.log"], "run.log is not of an export, and would be replaced\n  name another file"),
        (["format=hf", "output=."], "output=.: . is the folder that you are in, and would be replaced: name a folder in it"),
        (["format=hf", "output=base/config.yaml"], "output=base/config.yaml: this is a file\n  name a folder"),
        (["format=hf", "output=x", "weights=f16"], "weights=f16: is for format=gguf"),
    ],
)
def test_what_cannot_be_done_is_said(base, capsys, overrides, said):
    assert export([f"checkpoint={base}", *overrides]) == 2
    assert said in capsys.readouterr().err
