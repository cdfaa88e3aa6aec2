"""What several test folders share: small configurations of real runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from gpt2x.config.schema import GROUPS, PathsConfig, TrainConfig
from gpt2x.data.config import InstructionsConfig, TableConfig
from gpt2x.task.config import ClassifierConfig, InstructionTuningConfig
from gpt2x.training.config import TrainerConfig

TEXT = (Path(__file__).parent.parent / "gpt2x" / "data" / "storybook.txt").read_text()[:12_000]

# With pytest -n the cores are shared out already, and threads that wait for a core that another process keeps are slow.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts pytest in the background makes it ignore Ctrl-C, and what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "folders 124M, ... of OpenAI's models, whose published outputs are compared"
    parser.addoption("--real-weights", metavar="FOLDER", help=told)


hypothesis_settings.register_profile("no deadline", deadline=None)  # other work may hold a core
hypothesis_settings.load_profile("no deadline")


@pytest.fixture(autouse=True, scope="module")
def one_thread(request):
    """One thread where models are so small that several only wait for each other."""
    if request.path.parent.name not in {"compare", "evaluation", "generation", "interop", "model", "sweep", "task"}:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def unmeasured():
    """Runs that leave the device's settings open keep to the usual ones: measuring takes a second each."""
    from gpt2x.training import calibration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "measure", lambda _, settings: calibration.Found(dict.fromkeys(settings, 1.0), None, ""))
        yield


@pytest.fixture(autouse=True)
def torch_switches():
    """Put torch's process-wide switches, which a run sets, back to their defaults."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of public data files that tests may read; the test is skipped where there is none."""
    folder = os.environ.get("GPT2X_MIRROR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GPT2X_MIRROR names no folder with the public data files")
    return Path(folder)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory) -> Path:
    """A cache folder that holds the compiled kernel; the test is skipped where it cannot be compiled."""
    from gpt2x.model.prepared import KernelError, compiled

    folder = tmp_path_factory.mktemp("cache")
    try:
        compiled(folder)
    except KernelError as error:
        pytest.skip(f"this machine cannot compile the kernel: {error}")
    return folder


@pytest.fixture
def small_run(tmp_path):
    """Make the configuration of a run that takes a second or two: `small_run(**{"trainer.max_steps": 5})`."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def make(**changes) -> TrainConfig:
        settings = {
            "model": dict(n_layer=2, n_head=2, n_embd=16, context_length=16, dropout=0.1, attention="sdpa"),
            "tokenizer": dict(_target_="gpt2x.tokenizer.bpe.BPETokenizer.from_corpus", vocab_size=300),
            "data": dict(path=str(text), batch_size=4),
            "task": {},
            "optimizer": dict(_target_="gpt2x.training.optimizer.adamw", lr=3e-3),
            "schedule": dict(_target_="gpt2x.training.schedule.Cosine", warmup_steps=2),
            "device": dict(threads=1, kernels=True),
            "logger": dict(_target_="gpt2x.tracking.tracker.NullTracker"),
            "sampling": dict(max_new_tokens=5, temperature=1.0),
            "trainer": dict(max_steps=12, eval_every=4, log_every=1),
        }
        root = dict(
            name="test", paths=PathsConfig(outputs=str(tmp_path / "outputs"), cache=str(tmp_path / "cache"), mirror=None)
        )
        for key, value in changes.items():
            group, _, name = key.rpartition(".")
            (settings.setdefault(group, {}) if group else root)[name] = value
        built = {"trainer": TrainerConfig(**settings.pop("trainer"))}
        for group, values in settings.items():
            target = values.get("_target_")
            cls = next(c for c in GROUPS[group] if target is None or c._target_ == target)
            built[group] = cls(**values)
        return TrainConfig(**root, **built)

    return make


@pytest.fixture
def fine_tuning(small_run):
    """Make that of a run on the small data that ship: `fine_tuning("classifier", finetune=HeadConfig(), **changes)`.

    `task` and `data` are changes in their groups, `init` and `finetune` whole configs, all others those of `small_run`.
    """

    def make(kind: str, *, task=(), data=(), init=None, finetune=None, **changes) -> TrainConfig:
        settings = {"model.dropout": 0.0, "model.context_length": 96, "model.n_layer": 3, "trainer.max_steps": 60}
        config = small_run(**settings | {"trainer.eval_every": 20, "sampling.max_new_tokens": 2} | changes)
        if kind == "classifier":
            config.data = TableConfig(builtin="spam_sample.csv", labels=["ham", "spam"], **dict(data))
            config.task = ClassifierConfig(**dict(task))
        else:
            config.data = InstructionsConfig(builtin="instructions_sample.json", **dict(data))
            config.task = InstructionTuningConfig(**{"template": "phi3", "answers": 1} | dict(task))
        config.init, config.finetune = init or config.init, finetune or config.finetune
        config.check()
        return config

    return make
