"""Which setting a run is given where its own is open: the choice, what is kept of it, and what must not change."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from gpt2x.config.compose import from_yaml
from gpt2x.config.schema import PathsConfig, TrainConfig
from gpt2x.device import usable_cpus
from gpt2x.errors import UserError
from gpt2x.model import fused
from gpt2x.model.compiler import KernelError
from gpt2x.model.gpt import GPT
from gpt2x.training import calibration
from gpt2x.training.calibration import Disturbed, Found, Setting, measure, settle
from gpt2x.training.config import HeadConfig, LastBlockConfig, LoRAConfig
from gpt2x.training.run import train
from gpt2x.training.run_folder import config_hash

OPEN = {"device.threads": None, "device.kernels": None}
FITTING = {"model.n_embd": 32, "model.dropout": 0.0}  # two heads, each of 16, which train.c takes
ALL = [Setting(threads, kernels) for threads in (4, 2, 1, 8) for kernels in (True, False)]


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One of four cores with two threads each."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(calibration, "default_threads", lambda: 4)
    monkeypatch.setattr(calibration, "usable_cpus", lambda: 8)


@pytest.fixture
def timed(monkeypatch):
    """`timed(seconds)`: from here on these are measured, by setting, 1 s for others; the settings that were asked for."""
    asked = []

    def be(seconds=(), bf16=None):
        def fake(config, settings):
            asked.append(settings)
            return Found({s: dict(seconds).get(s, 1.0) for s in settings}, bf16, "2026-11-28")

        monkeypatch.setattr(calibration, "measure", fake)
        monkeypatch.setattr(calibration, "compiled", lambda name, cache: None)
        return asked

    return be


def settled(config: TrainConfig) -> tuple:
    said = settle(config)
    return config.device.threads, config.device.kernels, said


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({}, (4, True)),
        ({(1, True): 0.5}, (1, True)),
        ({(8, True): 0.92, (1, False): 0.95}, (4, True)),  # that may be noise
        ({(8, True): 0.9}, (8, True)),
        ({(4, False): 0.8}, (4, False)),
        ({(1, False): 0.5, (1, True): 0.52}, (1, True)),  # of those alike, the one that is more like the usual
    ],
    ids=str,
)
def test_another_setting_is_chosen_where_it_is_clearly_faster(small_run, timed, seconds, best):
    asked = timed(seconds)
    assert settled(small_run(**OPEN))[:2] == best
    assert asked == [ALL]


@pytest.mark.parametrize(
    ("pinned", "candidates"),
    [
        ({"device.threads": 2}, [(2, True), (2, False)]),
        ({"device.kernels": False}, [(4, False), (2, False), (1, False), (8, False)]),
        ({"device.kernels": True}, [(4, True), (2, True), (1, True), (8, True)]),
    ],
    ids=str,
)
def test_what_is_pinned_stays_as_it_is(small_run, timed, pinned, candidates):
    asked = timed({candidates[-1]: 0.1})
    assert settled(small_run(**OPEN | pinned))[:2] == candidates[-1]
    assert asked == [candidates]


def test_a_launchers_share_of_the_cores_is_pinned(small_run, timed, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(calibration, "default_threads", lambda: 3)
    asked = timed()
    assert settled(small_run(**OPEN))[:2] == (3, True)
    assert asked == [[(3, True), (3, False)]]


@pytest.mark.parametrize(
    ("changes", "usual"),
    [
        ({"device.threads": 2, "device.kernels": False}, (2, False)),
        ({"device.compile": True}, (4, False)),
        ({"device.type": "cuda"}, (4, False)),
        ({"finetune": HeadConfig()}, (4, True)),
        ({"finetune": LastBlockConfig()}, (4, True)),
        ({"finetune": LoRAConfig(), "device.kernels": False}, (4, False)),
    ],
    ids=str,
)
def test_what_one_block_cannot_tell_is_not_measured(small_run, timed, changes, usual):
    asked = timed({(1, False): 0.1})
    assert settled(small_run(**OPEN | changes)) == (*usual, [])
    assert not asked


@pytest.mark.parametrize("kind", ["classifier", "instruct"])
def test_rows_of_lengths_of_their_own_are_not_measured(fine_tuning, timed, kind):
    asked = timed({(1, False): 0.1})
    assert settled(fine_tuning(kind, **OPEN)) == (4, True, [])
    assert not asked


@pytest.mark.parametrize("pinned", [{}, {"device.kernels": True}], ids=str)
def test_without_a_compiler_threads_alone_are_compared(small_run, timed, monkeypatch, pinned):
    def fail(name, cache):
        raise KernelError("there is none")

    asked = timed({(8, False): 0.5})
    monkeypatch.setattr(calibration, "compiled", fail)
    threads, kernels, said = settled(small_run(**OPEN | pinned))
    assert (threads, kernels) == (8, False)
    assert asked == [[(4, False), (2, False), (1, False), (8, False)]]
    assert said[0] == "torch alone, without the code for this processor: there is none"


# -- what is kept ---------------------------------------------------------------------------------------------------


def test_a_kept_answer_is_taken_without_measuring(small_run, timed):
    asked = timed({(1, True): 0.5})
    _, _, (said,) = settled(small_run(**OPEN))
    assert said == (
        "just now, a block: 500 ms with 1 thread, compiled; 1e+03 ms with 4 threads, compiled; 1e+03 ms with 4 threads, torch "
        "alone; 1e+03 ms with 2 threads, compiled; 1e+03 ms with 2 threads, torch alone; 1e+03 ms with 1 thread, torch alone; "
        "1e+03 ms with 8 threads, compiled; 1e+03 ms with 8 threads, torch alone; so it is device.threads=1 device.kernels=true"
    )
    timed({(8, False): 0.01})
    threads, kernels, (again,) = settled(small_run(**OPEN))
    assert (threads, kernels) == (1, True)
    assert again == said.replace("just now", "on 2026-11-28")
    assert len(asked) == 1


ANOTHER = {
    "seed": (2, False), "trainer.max_steps": (99, False), "model.n_layer": (3, False), "optimizer.lr": (0.1, False),
    "model.n_embd": (32, True), "model.n_head": (4, True), "model.context_length": (8, True), "model.bias": (False, True),
    "data.batch_size": (5, True), "device.precision": ("bf16", True), "device.deterministic": (False, True),
    "device.threads": (3, True), "model.init": ("gpt2_zero", False), "model.ngram_embeddings": ([9], False),
}  # fmt: skip


@pytest.mark.parametrize("setting", ANOTHER)
def test_what_decides_the_answer_is_measured_anew(small_run, timed, setting):
    asked = timed()
    settle(small_run(**OPEN))
    value, anew = ANOTHER[setting]
    settle(small_run(**OPEN | {setting: value}))
    assert len(asked) == 1 + anew


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (calibration, "processor", lambda: "another"),
        (calibration, "usable_cpus", lambda: 6),
        (calibration, "source", lambda name: f"another {name}.c"),
        (torch, "__version__", "99"),
    ],
    ids=["processor", "cpus", "code", "torch"],
)
def test_another_machine_or_program_is_measured_anew(small_run, timed, monkeypatch, where, name, value):
    asked = timed()
    settle(small_run(**OPEN))
    monkeypatch.setattr(where, name, value)
    settle(small_run(**OPEN))
    assert len(asked) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: text.replace('"seconds"', '"times"'),
        lambda text: text.replace("4,", "5,"),  # the usual setting is not among them
        lambda text: json.dumps(dict.fromkeys(json.loads(text), 3)),
        lambda text: json.dumps({key: entry | {"seconds": [[4, True]]} for key, entry in json.loads(text).items()}),
    ],
)
def test_a_file_that_makes_no_sense_is_written_anew(small_run, timed, damage):
    config = small_run(**OPEN)
    asked = timed({(1, True): 0.5})
    settle(config)
    path = Path(config.paths.cache) / "calibration.json"
    whole = path.read_text()
    path.write_text(damage(whole))
    assert settled(small_run(**OPEN))[:2] == (1, True)
    assert len(asked) == 2
    assert json.loads(path.read_text()).items() >= json.loads(whole).items()


def test_other_answers_stay_in_the_file(small_run, timed):
    asked = timed()
    for n in (4, 5, 4, 5):
        settle(small_run(**OPEN | {"data.batch_size": n}))
    assert len(asked) == 2


def fallen_back(config: TrainConfig, told: str) -> bool:
    """Whether the usual setting is taken, which one line says and why, and nothing is kept."""
    threads, kernels, (said,) = settled(config)
    assert told in said
    assert said.endswith("so it is the usual device.threads=4 device.kernels=true")
    return (threads, kernels) == (4, True) and not Path(config.paths.cache, "calibration.json").exists()


def test_what_is_measured_beside_other_programs_is_not_used(small_run, timed, monkeypatch):
    """So a busy machine gives each run the same bits, and the first quiet one decides."""

    def disturbed(config, settings):
        raise Disturbed("other programs took cores meanwhile")

    asked = timed({(1, False): 0.1})
    with monkeypatch.context() as busy:
        busy.setattr(calibration, "measure", disturbed)
        for _ in range(2):
            assert fallen_back(small_run(**OPEN), "nothing that can be kept (other programs took cores meanwhile)")
    assert settled(small_run(**OPEN))[:2] == (1, False)
    assert len(asked) == 1


@pytest.mark.parametrize("where", ["a file/cache", "a file", "/proc/nope/cache"])
def test_a_cache_that_cannot_be_written_ends_no_run(small_run, timed, tmp_path, where):
    (tmp_path / "a file").write_text("")
    asked = timed({(1, False): 0.1})
    paths = PathsConfig(outputs=str(tmp_path), cache=str(tmp_path / where))
    threads, kernels, (said,) = settled(small_run(paths=paths, **OPEN))
    assert (threads, kernels, asked) == (4, True, [])
    assert said.startswith("nothing that can be kept ([Errno ")
    assert said.endswith("so it is the usual device.threads=4 device.kernels=true")


def test_an_answer_that_cannot_be_written_is_not_used(small_run, timed, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    timed({(1, False): 0.1})
    monkeypatch.setattr(calibration, "write_atomic", full)
    assert fallen_back(small_run(**OPEN), "([Errno 28] No space left on device)")


def test_others_that_measure_are_not_waited_for_without_end(small_run, timed, monkeypatch):
    monkeypatch.setattr(calibration, "_PATIENCE", 0)
    asked, config = timed({(1, False): 0.1}), small_run(**OPEN)
    with FileLock(Path(config.paths.cache, "calibration.lock")):
        assert fallen_back(config, "could not be acquired")
    assert not asked


def test_bf16_is_told_of_and_never_chosen(small_run, timed):
    timed({(4, True): 0.03}, bf16=0.02)
    config = small_run(**OPEN)
    assert settled(config)[2][1:] == [
        "20 ms a block in bf16, 1.5 times as fast, with products of numbers of 8 significant bits: device=cpu_bf16"
    ]
    assert config.device.precision == "fp32"
    assert len(settle(small_run(**OPEN))) == 2  # as it was kept
    timed({(4, True): 0.03}, bf16=0.029)
    assert len(settle(small_run(**OPEN | {"data.batch_size": 5}))) == 1


# -- the measuring itself -------------------------------------------------------------------------------------------


@pytest.fixture
def with_code(small_run, kernels, monkeypatch):
    """Configurations of runs whose cache holds the compiled code, and a measuring that is over after three rounds."""
    monkeypatch.setattr(calibration, "_SECONDS", 1e-6)
    monkeypatch.setattr(calibration, "has_bf16", lambda kind: False)
    paths = PathsConfig(outputs=str(kernels), cache=str(kernels))
    return lambda **changes: small_run(paths=paths, **FITTING | OPEN | changes)


@pytest.fixture
def paced(monkeypatch):
    """`paced(seconds, waited)`: steps take and wait as long as these say of their setting; the clocks, and a list of steps."""
    now, idle, steps, loss = [0.0], [0.0], [], GPT.loss

    def be(seconds=lambda setting: 1.0, waited=lambda setting: 0.0):
        def step(gpt, tokens_BT, *a):
            setting = Setting(torch.get_num_threads(), gpt.fused)
            steps.append((setting, tuple(tokens_BT.shape)))
            now[0] += seconds(setting)
            idle[0] += waited(setting)
            return loss(gpt, tokens_BT, *a)

        monkeypatch.setattr(GPT, "loss", step)
        return {"clock": lambda: now[0], "waited": lambda: idle[0]}, steps

    return be


FOUR = [Setting(2, True), Setting(2, False), Setting(1, True), Setting(1, False)]


@pytest.mark.parametrize(
    ("changes", "compared"),
    [
        ({}, True),
        ({"model.position": "rope", "model.norm": "rmsnorm", "model.ngram_embeddings": [500]}, True),
        ({"model.position": "alibi"}, False),
        ({"model.mlp": "swiglu"}, False),
        ({"model.dropout": 0.1}, True),
        ({"model.residual_scalars": True, "model.value_embeddings": "table"}, False),
        ({"model.attention": "manual", "device.precision": "bf16"}, False),
    ],
    ids=str,
)
def test_measuring_moves_no_random_stream_and_knows_where_compiled_code_applies(with_code, paced, changes, compared):
    state = torch.get_rng_state()
    found = measure(with_code(**changes), FOUR, **paced()[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert found.seconds == dict.fromkeys(FOUR if compared else FOUR[::2], 1.0)
    told = calibration._told(found, "just now")[0]
    assert ("compiled" in told) == ("torch alone" in told) == compared  # where torch computes it anyway, neither is told


def test_each_setting_is_what_is_timed(with_code, paced, monkeypatch):
    """In three rounds, and bf16 with the best of them. The first step of two is not counted."""
    seen, run = [], fused.run
    config, (clocks, _) = with_code(), paced()
    monkeypatch.setattr(calibration, "has_bf16", lambda kind: True)
    monkeypatch.setattr(fused, "run", lambda *a: (seen.append((torch.get_num_threads(), fused._dtype())), run(*a))[1])
    found = measure(config, FOUR[:3], **clocks)
    assert seen == ([(2, torch.float32)] * 2 + [(1, torch.float32)] * 2) * 3 + [(2, torch.bfloat16)] * 6
    assert found.bf16 == 1.0


def test_what_is_far_too_slow_is_timed_once_but_for_the_usual(with_code, paced):
    clocks, steps = paced(lambda setting: dict(zip(FOUR, (3.0, 1.0, 1.75, 2.0), strict=True))[setting])
    found = measure(with_code(), FOUR, **clocks)
    assert [sum(setting == other for other, _ in steps) // 2 for setting in FOUR] == [3, 3, 3, 1]
    assert found.seconds == dict(zip(FOUR, (3.0, 1.0, 1.75), strict=False))
    assert found.best == FOUR[1]


@pytest.mark.parametrize(
    ("waits", "disturbed"),
    [
        (lambda setting: 0.05, False),
        (lambda setting: 0.2 * (setting == FOUR[2]), True),
        (lambda setting, once=[9.0, 9.0]: once.pop() if setting == FOUR[2] and once else 0.0, False),  # in one round of three
    ],
)
def test_threads_that_wait_for_cores_tell_of_other_programs(with_code, paced, waits, disturbed):
    clocks, _ = paced(waited=waits)
    with pytest.raises(Disturbed) if disturbed else contextlib.nullcontext():
        measure(with_code(), FOUR, **clocks)


@pytest.mark.parametrize(("seconds", "tokens", "steps"), [(1e-8, 1024, range(60, 121)), (1.0, 64, [1 * 2 + 3 * 4])])
def test_of_a_large_batch_as_much_is_taken_as_takes_a_moment(with_code, paced, seconds, tokens, steps):
    """And as many rounds as fit, but three in any case."""
    clocks, seen = paced(lambda setting: seconds)
    measure(with_code(**{"data.batch_size": 64}), [Setting(1, True), Setting(1, False)], **clocks)
    assert seen[0][1] == (4, 16)
    assert seen[-1][1] == (tokens // 16, 16)
    assert len(seen) in steps


# -- runs -----------------------------------------------------------------------------------------------------------


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((run_dir / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


def logged(run_dir: Path) -> str:
    return (run_dir / "run.log").read_text()


def test_a_run_that_measures_has_the_bits_of_one_that_is_pinned(with_code, tmp_path, monkeypatch):
    """A real one, on this machine, whether or not it is busy."""
    monkeypatch.setattr(calibration, "measure", measure)
    monkeypatch.setattr(calibration, "default_threads", lambda: 1)
    monkeypatch.setattr(calibration, "usable_cpus", usable_cpus)
    train(with_code(), tmp_path / "open")
    saved = from_yaml(tmp_path / "open" / "config.yaml", TrainConfig)
    noted = saved.device
    assert None not in (noted.threads, noted.kernels)
    assert json.loads((tmp_path / "open" / "result.json").read_text())["config_hash"] == config_hash(saved)
    assert f"device.threads={noted.threads} device.kernels={str(noted.kernels).lower()}" in logged(tmp_path / "open")
    assert f"device   cpu, {noted.threads} thread" in logged(tmp_path / "open")
    train(with_code(**{"device.threads": noted.threads, "device.kernels": noted.kernels}), tmp_path / "pinned")
    assert "measured" not in logged(tmp_path / "pinned")
    first, second = weights(tmp_path / "open"), weights(tmp_path / "pinned")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ", fp32, 2 of 2 blocks compiled\n"),
        ({"device.kernels": False}, ", fp32\n"),
        ({"model.mlp": "swiglu"}, ", fp32, 0 of 2 blocks compiled\n"),
        ({"model.n_kv_head": 1}, ", fp32, 0 of 2 blocks compiled\n"),
        ({"model.position": "alibi"}, ", fp32, 0 of 2 blocks compiled\n"),
        ({"model.n_embd": 16}, ", fp32, 0 of 2 blocks compiled\n"),
        ({"model.value_embeddings": "table"}, ", fp32, 1 of 2 blocks compiled\n"),
        ({"finetune": LoRAConfig()}, ", fp32, 0 of 2 blocks compiled\n"),
    ],
    ids=str,
)
def test_the_log_says_how_many_blocks_are_compiled_and_it_is_true(small_run, tmp_path, monkeypatch, changes, told):
    count, run = [], fused.run
    monkeypatch.setattr(fused, "run", lambda *a: (count.append(a), run(*a))[1])
    train(small_run(**FITTING | {"trainer.max_steps": 2, "sample_prompt": None} | changes), tmp_path / "run")
    assert f"device   cpu, 1 thread{told}" in logged(tmp_path / "run")
    assert bool(count) == (" 2 of 2" in told or " 1 of 2" in told)


@pytest.mark.parametrize("packing", [False, True])
def test_rows_of_several_texts_are_computed_by_torch(fine_tuning, tmp_path, monkeypatch, packing):
    count, run = [], fused.run
    monkeypatch.setattr(fused, "run", lambda block, *a: (count.append(block.training), run(block, *a))[1])
    changes = FITTING | {"trainer.max_steps": 2, "model.n_layer": 1}
    train(fine_tuning("instruct", task={"packing": packing}, **changes), tmp_path / "run")
    assert ("1 of 1 blocks compiled" in logged(tmp_path / "run")) == any(count) == (not packing)


def test_what_is_wrong_with_the_data_is_told_before_measuring(small_run, tmp_path, timed):
    asked = timed()
    with pytest.raises(UserError, match="nowhere"):
        train(small_run(**OPEN | {"data.path": str(tmp_path / "nowhere.txt")}), tmp_path / "run")
    assert not asked


def test_measuring_can_be_stopped_and_is_done_when_the_run_goes_on(small_run, tmp_path, timed, monkeypatch):
    asked = timed({(1, False): 0.1})
    with monkeypatch.context() as stopped, pytest.raises(SystemExit) as exit:
        stopped.setattr(calibration, "measure", lambda config, settings: os.kill(os.getpid(), signal.SIGTERM))
        train(small_run(**FITTING | OPEN), tmp_path / "run")
    assert exit.value.code == 143
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"
    train(resumed(tmp_path / "run", 2), tmp_path / "run")
    assert len(asked) == 1
    noted = from_yaml(tmp_path / "run" / "config.yaml", TrainConfig).device
    assert (noted.threads, noted.kernels) == (1, False)


def resumed(run_dir: Path, steps: int) -> TrainConfig:
    """What resume= makes of a run's own configuration."""
    config = from_yaml(run_dir / "config.yaml", TrainConfig)
    config.resume, config.trainer.max_steps = str(run_dir), steps
    return config


def test_a_run_that_goes_on_keeps_to_its_setting_whatever_is_kept_now(small_run, tmp_path, timed):
    changes = FITTING | OPEN | {"schedule._target_": "gpt2x.training.schedule.Constant", "trainer.checkpoint_every": 6}
    asked = timed({(1, False): 0.1})
    whole = train(small_run(**changes), tmp_path / "whole").run_dir
    half = train(small_run(**changes | {"trainer.max_steps": 6}), tmp_path / "half").run_dir
    assert len(asked) == 1
    (tmp_path / "cache" / "calibration.json").unlink()
    timed({(4, True): 0.1})
    assert settled(small_run(**changes))[:2] == (4, True)
    train(resumed(half, 12), half)
    assert "the bits will differ" not in (half / "run.log").read_text()
    first, second = weights(whole), weights(half)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_says_when_it_is_told_another_setting(small_run, tmp_path):
    half = train(small_run(**FITTING | {"trainer.max_steps": 6}), tmp_path / "half").run_dir
    config = resumed(half, 8)
    config.device.kernels = False
    train(config, half)
    assert "torch alone now, compiled code before: " in (half / "run.log").read_text()


def test_a_run_of_a_time_without_compiled_code_goes_on_without(small_run, timed):
    asked = timed()
    config = small_run(**OPEN | {"device.threads": 2})
    assert settle(config, goes_on=True) == []
    assert (config.device.threads, config.device.kernels) == (2, False)
    assert not asked
