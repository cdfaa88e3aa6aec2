"""A run that is judged when it has ended, as wandb is told of it: at once, and later from its folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from fake_wandb import FakeWandb
from scripted_judge import scripted_judge

ROOT = Path(__file__).parents[2]
JUDGED = [
    "task=instruct", "data=instructions_sample", "model.n_layer=1", "model.n_head=2", "model.n_embd=16",
    "model.context_length=96", "tokenizer.vocab_size=300", "task.template=phi3", "task.answers=0", "trainer.max_steps=4",
    "trainer.eval_every=4", "optimizer.lr=0.03", "device.threads=1", "device.kernels=true",
    "evaluation=judge", "evaluation.max_examples=3", "evaluation.max_new_tokens=4", "evaluation.temperature=1",
]  # fmt: skip


def told(arrived: dict) -> tuple[dict, list[set[str]]]:
    """The evaluation in a wandb run's summary, and what was logged of it: the keys of tables and pictures."""
    rows = [{key for key in row if key.startswith(("judged/", "plots/"))} for row in arrived["history"]]
    return arrived["summary"]["evaluation"], sorted(filter(None, rows), key=str)


def test_a_judged_run_reaches_the_server_at_once_and_from_its_folder_alike(environment, python, wandb_server, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    with scripted_judge() as judge:
        command = [
            sys.executable,
            str(ROOT / "scripts" / "train.py"),
            *JUDGED,
            f"judge.url={judge.url}",
            f"hydra.run.dir={run}",
        ]
        done = subprocess.run(command, cwd=tmp_path, env=environment | wandb_server.env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    arrived = wandb_server.only_run()
    evaluation, logged = told(arrived)
    assert (evaluation["items"], evaluation["score"]["value"]) == (3, 80)
    assert logged == [{"judged/items"}, {"plots/judged"}, {"plots/loss"}]
    (table,) = (row["judged/items"] for row in arrived["history"] if "judged/items" in row)
    assert (table["_type"], table["nrows"]) == ("table-file", 3)

    shutil.copytree(run, again, ignore=shutil.ignore_patterns("wandb.json"))  # as one that no server knows
    script = f"from gpt2x.tracking.sync import sync_runs\nfor _ in range(2): print(sync_runs([{str(again)!r}])[0].outcome)"
    with FakeWandb() as later:
        out, err = python(script, **later.env()).communicate(timeout=100)
        assert [line for line in out.splitlines() if line in ("sent", "up to date")] == ["sent", "up to date"], out + err
        assert told(later.only_run()) == (evaluation, logged)
        assert len(later.only_run()["history"]) == len(arrived["history"])
