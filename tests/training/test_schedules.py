"""Schedules: their shape, against formulas written another way."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.training.schedule import WSD, Constant, Cosine, Linear, RangeTest


def test_warmup_is_a_straight_line_that_starts_above_zero():
    schedule = Constant(total_steps=100, warmup_steps=4)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_passes_its_quarter_points():
    schedule = Cosine(total_steps=110, warmup_steps=10, min_lr_ratio=0.1)
    assert schedule(10) == pytest.approx(1.0)
    assert schedule(60) == pytest.approx(0.55)
    assert schedule(35) == pytest.approx(0.55 + 0.45 * math.sqrt(0.5))
    assert schedule(110) == pytest.approx(0.1)


def test_linear_goes_from_the_peak_to_its_end():
    schedule = Linear(total_steps=100, warmup_steps=0, min_lr_ratio=0.2)
    assert [schedule(s) for s in (0, 50, 100)] == pytest.approx([1.0, 0.6, 0.2])


def test_wsd_is_a_trapezoid():
    schedule = WSD(total_steps=100, warmup_steps=10, decay_fraction=0.4, min_lr_ratio=0.0)
    assert schedule(10) == schedule(60) == 1.0
    assert schedule(80) == pytest.approx(0.5)
    assert schedule(99) == pytest.approx(1 / 40)
    assert schedule(100) == 0.0


def test_a_range_test_rises_by_the_same_factor_at_every_step_from_its_start():
    schedule = RangeTest(total_steps=50, start=1e-5)
    values = [schedule(step) for step in range(51)]
    assert values[0] == pytest.approx(1e-5)
    assert values[50] == 1.0
    assert [b / a for a, b in itertools.pairwise(values)] == pytest.approx([10 ** (5 / 50)] * 50)


@given(
    total=st.integers(1, 500),
    warmup=st.integers(0, 500),
    ratio=st.floats(0, 1),
    fraction=st.floats(0, 1),
)
def test_every_schedule_stays_between_zero_and_the_peak_and_falls_after_the_warmup(total, warmup, ratio, fraction):
    schedules = [
        Constant(total_steps=total, warmup_steps=warmup),
        Cosine(total_steps=total, warmup_steps=warmup, min_lr_ratio=ratio),
        Linear(total_steps=total, warmup_steps=warmup, min_lr_ratio=ratio),
        WSD(total_steps=total, warmup_steps=warmup, decay_fraction=fraction, min_lr_ratio=ratio),
    ]
    for schedule in schedules:
        values = [schedule(step) for step in range(total)]
        assert all(0 <= value <= 1 for value in values)
        after = values[warmup:]
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))
