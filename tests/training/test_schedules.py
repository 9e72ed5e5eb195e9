from __future__ import annotations

import math

import pytest

from anaus_bench.training.schedules import warmup_cosine


def test_the_rate_starts_at_zero_peaks_after_warm_up_and_ends_at_zero() -> None:
    assert warmup_cosine(0, 100, 10, 0.3) == 0
    assert warmup_cosine(5, 100, 10, 0.3) == pytest.approx(0.15)
    assert warmup_cosine(10, 100, 10, 0.3) == pytest.approx(0.3)
    assert warmup_cosine(55, 100, 10, 0.3) == pytest.approx(0.15)
    assert warmup_cosine(100, 100, 10, 0.3) == pytest.approx(0)


def test_the_rate_falls_along_a_half_cosine() -> None:
    for step in range(10, 100):
        expected = 0.3 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert warmup_cosine(step, 100, 10, 0.3) == pytest.approx(expected)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    assert warmup_cosine(0, 100, 0, 0.3) == pytest.approx(0.3)
