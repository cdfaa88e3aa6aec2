"""Checkpoints: whole or not there, refused when torn, kept as the policy says."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from gpt2x.training.checkpoint import CheckpointError, Checkpoints


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep_last=3)


def save(checkpoints: Checkpoints, step: int, best_step: int | None = None) -> None:
    generator = torch.Generator().manual_seed(step)
    tensors = {"model": {"w": torch.randn(3, 4, generator=generator)}, "optimizer": {"w/step": torch.tensor(float(step))}}
    checkpoints.save({"step": step, "best_step": best_step, "note": "é"}, tensors)


def test_what_is_saved_comes_back(checkpoints):
    save(checkpoints, 5)
    loaded = checkpoints.newest()
    assert loaded.step == 5
    assert loaded.state["note"] == "é"
    expected = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))
    assert torch.equal(loaded.tensors("model")["w"], expected)
    assert loaded.tensors("optimizer")["w/step"].item() == 5.0
    assert loaded.has("optimizer")
    assert not loaded.has("ema")


COPY = """
import sys
from pathlib import Path
import torch
from gpt2x.device import peak_memory
from gpt2x.training.checkpoint import Checkpoint
weights = Checkpoint(Path(sys.argv[1]), {}).mapped("model")
copies = [torch.zeros(1000, 1000) for _ in weights]  # a hundred megabytes, held from now on
before = peak_memory()
for copy, name in zip(copies, weights):
    copy.copy_(weights[name])
print(peak_memory() - before)
"""


def test_what_is_mapped_is_the_same_and_does_not_stay_in_memory(checkpoints):
    tensors = {f"w{i}": torch.full((1000, 1000), float(i)) for i in range(25)}
    folder = checkpoints.save({"step": 1, "best_step": None}, {"model": tensors})
    mapped = checkpoints.load(1).mapped("model")
    assert len(mapped) == 25 and mapped.keys() == tensors.keys()
    assert all(torch.equal(mapped[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(KeyError, match="other"):
        mapped["other"]
    done = subprocess.run([sys.executable, "-c", COPY, str(folder)], capture_output=True, text=True)
    assert int(done.stdout) < 30e6, done.stderr


def test_saving_the_same_twice_gives_the_same_bytes(checkpoints):
    save(checkpoints, 5)
    first = {p.name: p.read_bytes() for p in (checkpoints.folder / "step-00000005").iterdir()}
    save(checkpoints, 5)
    assert {p.name: p.read_bytes() for p in (checkpoints.folder / "step-00000005").iterdir()} == first


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_damage_is_refused_and_the_checkpoint_before_is_used(checkpoints, caplog, name, damage):
    save(checkpoints, 1)
    save(checkpoints, 2)
    path = checkpoints.folder / "step-00000002" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-2])  # the last byte of the JSON is only its newline
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match="step-00000002"):
        checkpoints.load(2)
    assert checkpoints.newest().step == 1
    assert "step-00000002" in caplog.text
    assert "going back" in caplog.text


def test_a_state_edited_by_hand_is_refused(checkpoints):
    save(checkpoints, 3)
    path = checkpoints.folder / "step-00000003" / "state.json"
    state = json.loads(path.read_text())
    state["step"] = 4
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="changed"):
        checkpoints.load(3)


def test_all_damaged_is_an_error_and_none_at_all_is_none(checkpoints):
    assert checkpoints.newest() is None
    save(checkpoints, 1)
    (checkpoints.folder / "step-00000001" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint"):
        checkpoints.newest()


@pytest.mark.parametrize("fail_at", ["save_file", "fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_debris(checkpoints, monkeypatch, fail_at):
    save(checkpoints, 1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if fail_at == "save_file":
        import safetensors.torch

        monkeypatch.setattr(safetensors.torch, "save_file", full)
    else:
        monkeypatch.setattr(os, fail_at, full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(checkpoints, 2)
    monkeypatch.undo()
    assert [p.name for p in checkpoints.folder.iterdir()] == ["step-00000001"]
    assert checkpoints.newest().step == 1


def test_half_written_folders_are_never_read_and_are_removed(checkpoints):
    save(checkpoints, 1)
    shutil.copytree(checkpoints.folder / "step-00000001", checkpoints.folder / ".writing-step-00000002")
    assert checkpoints.steps() == [1]
    assert checkpoints.recover().step == 1
    assert [p.name for p in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_a_kill_while_a_checkpoint_is_replaced_loses_neither(checkpoints, monkeypatch):
    """The same step saved twice, with a crash at each of the renames and deletions of the second time."""

    class Killed(BaseException):
        pass

    real = {"replace": os.replace, "rmtree": shutil.rmtree}
    for moment in range(1, 7):
        save(checkpoints, 1)
        calls = []

        def counted(name, moment=moment, calls=calls):
            def call(*args, **kwargs):
                calls.append(name)
                if len(calls) == moment:
                    raise Killed
                return real[name](*args, **kwargs)

            return call

        monkeypatch.setattr(os, "replace", counted("replace"))
        monkeypatch.setattr(shutil, "rmtree", counted("rmtree"))
        with contextlib.suppress(Killed):
            save(checkpoints, 1)
        monkeypatch.undo()
        assert checkpoints.recover().step == 1
        assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_a_checkpoint_that_cannot_be_removed_costs_a_warning(checkpoints, monkeypatch, caplog):
    checkpoints.keep_last = 1
    save(checkpoints, 1)
    real = os.replace

    def busy(source, target):
        if ".old-" in str(target):
            raise PermissionError("in use")
        real(source, target)

    monkeypatch.setattr(os, "replace", busy)
    save(checkpoints, 2)
    assert "step 1 could not be removed" in caplog.text
    assert checkpoints.newest().step == 2


def test_a_damaged_best_gives_the_last_and_says_so(checkpoints, caplog):
    for step in (1, 2):
        save(checkpoints, step, best_step=1)
    (checkpoints.folder / "step-00000001" / "model.safetensors").write_bytes(b"")
    assert checkpoints.select("best").step == 2
    assert "using the last one, of step 2" in caplog.text


def test_the_weights_can_be_had_where_only_the_optimizer_s_state_is_damaged(checkpoints):
    save(checkpoints, 1)
    (checkpoints.folder / "step-00000001" / "optimizer.safetensors").write_bytes(b"")
    assert checkpoints.select("last").tensors("model")["w"].shape == (3, 4)
    with pytest.raises(CheckpointError, match="optimizer"):
        checkpoints.load(1)


def test_the_policy_keeps_last_best_and_multiples(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=True, keep_every=5)
    for step in range(1, 13):
        save(checkpoints, step, best_step=min(step, 3))
    assert checkpoints.steps() == [3, 5, 10, 11, 12]
    plain = Checkpoints(tmp_path / "plain", keep_last=1, keep_best=False)
    for step in range(1, 4):
        save(plain, step, best_step=1)
    assert plain.steps() == [3]


def test_selecting_best_last_or_a_step(checkpoints):
    for step in (1, 2, 3):
        save(checkpoints, step, best_step=min(step, 2))
    assert checkpoints.select("best").step == 2
    assert checkpoints.select("last").step == 3
    assert checkpoints.select("1").step == 1
    with pytest.raises(CheckpointError, match="there are: 1, 2, 3"):
        checkpoints.select("7")
    with pytest.raises(CheckpointError, match="expected best, last"):
        checkpoints.select("newest")


def test_nothing_is_pickled(checkpoints):
    save(checkpoints, 1)
    names = {p.suffix for p in (checkpoints.folder / "step-00000001").iterdir()}
    assert names == {".safetensors", ".json"}


def test_others_may_read_a_checkpoint(checkpoints):
    if os.name == "nt":
        pytest.skip("Windows has no such modes")
    save(checkpoints, 1)
    for path in (checkpoints.folder / "step-00000001").iterdir():
        assert path.stat().st_mode & 0o444 == 0o444
