"""Runs that are killed, stopped or damaged go on to the very bits of a run that never was."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest
from faults.command import finish, outcome, resume, rows, start, wait_for


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run, its outcome and how many seconds it took from the making of its folder on."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(run)
    wait_for(run.exists, process)
    began = time.monotonic()
    finish(process)
    return run, outcome(run), time.monotonic() - began


def kill_and_resume(run, moment: float) -> None:
    process = start(run)
    wait_for(run.exists, process)
    time.sleep(moment)
    process.kill()
    process.communicate()
    if not (run / "config.yaml").exists():  # killed before there was anything to resume
        finish(start(run))
    else:
        finish(resume(run))


@pytest.mark.parametrize("number", range(3))
def test_killed_at_a_random_moment_and_resumed_gives_the_same_bits(undisturbed, tmp_path, number):
    _, expected, duration = undisturbed
    kill_and_resume(tmp_path / "run", random.Random(number).uniform(0.2, 1) * duration)
    assert outcome(tmp_path / "run") == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_killed_at_one_of_twenty_random_moments(undisturbed, tmp_path, number):
    _, expected, duration = undisturbed
    kill_and_resume(tmp_path / "run", random.Random(100 + number).uniform(0, 1) * duration)
    assert outcome(tmp_path / "run") == expected


def test_killed_again_and_again(undisturbed, tmp_path):
    _, expected, _ = undisturbed
    run = tmp_path / "run"
    process = start(run)
    for more in (15, 40, 33):
        wait_for(lambda: rows(run) > 0, process)
        already = rows(run)
        wait_for(lambda already=already, more=more: rows(run) > min(already + more, 140), process)
        process.kill()
        process.communicate()
        process = resume(run)
    finish(process)
    assert outcome(run) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_exits_with_its_code(undisturbed, tmp_path, number, code):
    _, expected, _ = undisturbed
    run = tmp_path / "run"
    process = start(run)
    wait_for(lambda: rows(run) > 33, process)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert "stopped and saved at step" in output
    assert "gpt2x-train resume=" in output
    assert "Traceback" not in output
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "interrupted"
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    assert newest.name == f"step-{result['steps']:08d}"
    output = finish(resume(run))
    assert f"going on from step {result['steps']}" in output
    assert outcome(run) == expected
    assert json.loads((run / "result.json").read_text())["status"] == "finished"


def test_a_second_signal_stops_at_once(tmp_path):
    run = tmp_path / "run"
    # Evaluating on the training split as well keeps it busy between the two signals.
    process = start(run, "trainer.max_steps=100000", "trainer.eval_train_windows=100000", "trainer.eval_every=20")
    wait_for(lambda: rows(run) > 3, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (130, 143)


def test_a_torn_newest_checkpoint_is_said_and_the_one_before_used(undisturbed, tmp_path):
    _, expected, _ = undisturbed
    run = tmp_path / "run"
    process = start(run)
    wait_for(lambda: rows(run) > 45, process)
    process.kill()
    process.communicate()
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    output = finish(resume(run))
    assert f"{newest.name}/model.safetensors is torn or was changed" in output
    assert "going back to the checkpoint before it" in output
    assert outcome(run) == expected


def test_a_run_cut_short_and_extended_equals_one_that_was_planned_long(undisturbed, tmp_path):
    """With a schedule that does not look at the end; a cosine would rightly be another one."""
    long, short = tmp_path / "long", tmp_path / "short"
    finish(start(long, "schedule=constant", "trainer.max_steps=50"))
    finish(start(short, "schedule=constant", "trainer.max_steps=25"))
    finish(resume(short, "trainer.max_steps=50"))
    assert outcome(short)["model.safetensors"] == outcome(long)["model.safetensors"]


def test_a_finished_run_has_nothing_left_to_do(undisturbed):
    run, expected, _ = undisturbed
    output = finish(resume(run))
    assert "nothing left to do; a trainer.max_steps above 150 makes the run longer" in output
    assert "finished at step 150" in output
    assert outcome(run) == expected


def test_another_corpus_is_refused(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 400)
    run = tmp_path / "run"
    finish(start(run, "data=text", f"data.path={text}", "trainer.max_steps=25", "data.batch_size=4"))
    text.write_text("The dog sat on the log. " * 400)
    process = resume(run, "trainer.max_steps=50")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert "belongs to another corpus" in output
    assert "Traceback" not in output


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    run = tmp_path / "run"
    first = start(run, "trainer.max_steps=100000")
    wait_for(lambda: rows(run) > 0, first)
    second = resume(run)
    output = second.communicate(timeout=60)[0]
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert "in use by another process" in output


def test_a_full_disk_fails_the_run_and_keeps_the_earlier_checkpoint(tmp_path, undisturbed):
    """A real limit on the size of files: the checkpoint that crosses it cannot be written."""
    resource = pytest.importorskip("resource")
    _, expected, _ = undisturbed
    run = tmp_path / "run"
    process = start(run)
    wait_for(lambda: rows(run) > 45, process)
    process.kill()
    process.communicate()
    before = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    limit = (run / "checkpoints" / before[-1] / "optimizer.safetensors").stat().st_size - 1000

    def restrict() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = resume(run, preexec_fn=restrict)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert "cannot write the checkpoint" in output
    assert "Traceback" not in output
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == before
    finish(resume(run))
    assert outcome(run) == expected


def test_with_muon_and_growing_rows_it_goes_on_to_the_same_bits_too(tmp_path):
    """Killed while the momentum and the rows are still on their way up."""
    rising = ["optimizer=muon", "optimizer.momentum_warmup_steps=100", "trainer.sequence_warmup_steps=90", "model.mlp=swiglu"]
    short = ["trainer.max_steps=110", "model.position=rope", "model.value_embeddings=table", "model.residual_scalars=true"]
    finish(start(tmp_path / "undisturbed", *rising, *short))
    run = tmp_path / "run"
    process = start(run, *rising, *short)
    wait_for(lambda: rows(run) > 55, process)
    process.kill()
    process.communicate()
    finish(resume(run))
    assert outcome(run) == outcome(tmp_path / "undisturbed")
