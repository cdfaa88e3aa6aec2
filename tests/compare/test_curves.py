"""Expected curves: made from real runs, kept, found again by their settings, and right about what is normal."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml

from gpt2x.compare import load_runs
from gpt2x.compare.curves import SHIPPED, Curve, judge, load_curves, make_curve, save_curve
from gpt2x.compare.runs import cell, flat
from gpt2x.config.compose import compose
from gpt2x.config.schema import TrainConfig
from gpt2x.errors import UserError


@pytest.fixture
def sweep(outputs):
    return outputs / "sweeps/2026-11-24/10-00-00"


@pytest.fixture
def curve(sweep):
    return make_curve(load_runs(sweep / "0", sweep / "1", sweep / "2"), "tiny")


def test_a_curve_is_the_mean_and_deviation_of_its_runs_and_survives_its_file(sweep, curve, tmp_path):
    assert (curve.steps, curve.seeds) == ([0, 4, 8, 12], [1, 2, 3])
    rows = [[json.loads(line) for line in (sweep / str(i) / "metrics.jsonl").read_text().splitlines()] for i in range(3)]
    losses = np.array([[row["val/loss"] for row in run if "val/loss" in row] for run in rows])
    np.testing.assert_allclose(curve.mean, losses.mean(0), atol=1e-6)
    np.testing.assert_allclose(curve.deviation, losses.std(0, ddof=1), atol=1e-6)
    assert curve.versions["torch"]
    path = save_curve(curve, tmp_path / "curves")
    assert path.stat().st_size < 20_000
    assert str(tmp_path) not in path.read_text().replace(str(path), "")
    assert list(load_curves(path.parent)) == [curve]


def test_the_runs_of_the_same_settings_match_whatever_seed_and_place(outputs, sweep, curve, tmp_path):
    runs = load_runs(outputs)
    matching = {run for run in runs.table.index if curve.matches(runs.settings(run))}
    same = {f"sweeps/2026-11-24/10-00-00/{job}" for job in range(3)}
    assert matching == {*same, "runs/2026-11-24/interrupted", "runs/2026-11-24/killed"}
    moved = shutil.copytree(sweep / "0", tmp_path / "moved")
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["device"]["threads"], config["sampling"]["top_k"], config["trainer"]["keep_last"] = 7, 3, 9
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    runs = load_runs(moved)
    assert curve.matches(runs.settings("moved"))
    config["model"]["dropout"] = 0.2
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    assert not curve.matches(load_runs(moved).settings("moved"))


def test_a_curve_made_before_a_setting_existed_still_matches_its_default(sweep, curve):
    settings = {k: v for k, v in curve.settings.items() if k not in ("model.attention", "optimizer.layer_decay")}
    assert len(settings) == len(curve.settings) - 2
    run = load_runs(sweep / "0").settings("0")
    assert replace(curve, settings=settings).matches(run)
    assert not replace(curve, settings=settings).matches(run | {"model.attention": "eager"})


def test_a_healthy_run_is_as_expected_and_an_odd_one_is_not(sweep, curve, outputs):
    runs = load_runs(outputs)
    healthy = judge(runs, "runs/2026-11-24/interrupted", curve)
    assert healthy.inside
    assert str(healthy).startswith("as expected of tiny (n=3): inside the 95 % band at all 4 steps; at step 12 val/loss is ")
    runs.metrics.loc[runs.metrics["step"] >= 8, "val/loss"] += 5.0
    odd = judge(runs, "runs/2026-11-24/interrupted", curve)
    assert not odd.inside
    assert odd.steps[odd.first_outside] == 8
    assert "at 2 of 4 steps it is above the 95 % band, first at step 8: " in str(odd)


def test_a_run_that_is_not_over_is_judged_as_far_as_it_is(curve, outputs):
    runs = load_runs(outputs)
    keep = (runs.metrics["step"] <= 4) | (runs.metrics["run"] != "runs/2026-11-24/killed")
    object.__setattr__(runs, "metrics", runs.metrics[keep])
    assert "at all 2 steps of 4, as far as both were evaluated" in str(judge(runs, "runs/2026-11-24/killed", curve))
    assert judge(runs, "runs/2026-11-24/killed", replace(curve, steps=[1, 2, 3, 5])) is None


@pytest.mark.parametrize("n", [3, 5, 10])
def test_of_a_hundred_healthy_runs_five_at_most_are_called_odd(n):
    """Losses that wander as a run does: steps are correlated, the worst case for no band but the best for this one's width."""
    rng, odd, trials = np.random.default_rng(n), 0, 1500
    for _ in range(trials):
        losses = 3 + 0.05 * rng.normal(0, 1, (n + 1, 6)).cumsum(1)
        made = Curve("x", {}, list(range(n)), {}, [1, 2, 3, 4, 5, 6], list(losses[:n].mean(0)), list(losses[:n].std(0, ddof=1)))
        odd += any(abs(losses[n] - made.mean) > made.half_widths)
    assert 0.005 < odd / trials < 0.065


def test_rounding_alone_is_never_odd():
    made = Curve("x", {}, [1, 2, 3], {}, [0], [3.0], [0.0])
    assert made.half_widths == [1e-4]


def test_what_cannot_be_a_curve_is_said(sweep, tmp_path):
    with pytest.raises(UserError, match=r"of 2 recipes: they differ in optimizer\.lr"):
        make_curve(load_runs(sweep), "x")
    with pytest.raises(UserError, match="2 finished with different seeds, and the spread of a curve takes 3"):
        make_curve(load_runs(sweep / "0", sweep / "1"), "x")
    for content in (
        "{",
        "{}",
        json.dumps(dict(name="x", settings={}, seeds=[1], versions={}, steps=[], mean=[], deviation=[])),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match=r"bad\.json: this is no curve"):
            list(load_curves(tmp_path))


def test_the_curves_that_ship_are_of_this_version_s_settings():
    recipes = {"storybook": [], "study_position_learned": ["experiment=study_position"]}
    curves = {curve.name: curve for curve in load_curves(SHIPPED)}
    assert curves.keys() == recipes.keys()
    for name, overrides in recipes.items():
        config = flat(asdict(compose("train", TrainConfig, overrides)))
        settings = {key: cell(value) for key, value in config.items() if value is not None}
        assert curves[name].matches(settings), name
        assert not curves[name].matches(settings | {"optimizer.lr": 1.0})
