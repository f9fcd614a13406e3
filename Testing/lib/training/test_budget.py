"""Budgets of steps and of minutes, on a clock that the tests turn."""

import numpy as np
import pytest

from MedSSLLib.training import budget
from MedSSLLib.training.budget import Budget


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return clock


def spend(budget, clock, durations, between=None):
    """Progress after each step until the budget is used up."""
    budget.start()
    progress = []
    for taken in durations:
        clock.now += taken
        progress.append(budget.advance()[1])
        if budget.finished:
            return progress
        if between:
            between(len(progress))
    raise AssertionError("never finished")


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_fixed_steps_are_counted_exactly(clock, steps):
    progress = spend(Budget(steps=steps), clock, [0.1] * steps)
    np.testing.assert_allclose(progress, np.arange(1, steps + 1) / steps)
    assert progress[-1] == 1.0


def test_neither_and_both_limits_are_refused():
    for limits in ({}, {"steps": 3, "seconds": 4.0}):
        with pytest.raises(ValueError, match="steps or seconds"):
            Budget(**limits)


NOISE = np.random.default_rng(0)
PACES = {
    "even": [0.1] * 10**4,
    "noisy": list(NOISE.lognormal(-2.3, 0.6, 10**4)),
    "slow start": [3.0] + [0.1] * 10**4,
    "slower later": [0.05] * 400 + [0.2] * 10**4,
    "faster later": [0.4] * 30 + [0.05] * 10**4,
    "rare stalls": [2.0 if i % 50 == 49 else 0.1 for i in range(10**4)],
}


@pytest.mark.parametrize("pace", PACES)
def test_a_time_limit_is_kept_and_ends_annealed(clock, pace):
    start, budget = clock.now, Budget(seconds=60.0)
    progress = spend(budget, clock, PACES[pace])
    assert progress[-1] == 1.0, "the schedule must reach its end"
    assert np.all(np.diff(progress) >= 0) and progress[-2] > 0.97, (
        "it must get there without a jump"
    )
    assert 60 - 1 <= clock.now - start <= 60 + max(PACES[pace])


def test_with_even_steps_the_progress_of_a_time_limit_is_even(clock):
    progress = np.asarray(spend(Budget(seconds=30.0), clock, [0.1] * 400))
    np.testing.assert_allclose(progress, np.arange(1, len(progress) + 1) / len(progress), atol=0.02)


def test_validations_count_against_the_limit_but_not_as_steps(clock):
    budget, start = Budget(seconds=60.0), clock.now

    def validate(step):
        if step % 100 == 0:
            clock.now += 3
            budget.pause(3)
            assert budget.rate == pytest.approx(10)

    progress = spend(budget, clock, [0.1] * 1000, validate)
    assert (
        progress[-1] == 1 and 59 <= clock.now - start <= 63.2 and np.all(np.diff(progress) > -1e-12)
    )


def test_a_validation_longer_than_what_is_left_still_ends_annealed(clock):
    def validate(step):
        if step == 95:
            clock.now += 60

    progress = spend(Budget(seconds=10.0), clock, [0.1] * 1000, validate)
    assert progress[-1] == 1 and len(progress) == 96


def test_a_limit_shorter_than_a_step_ends_at_once(clock):
    assert spend(Budget(seconds=1.0), clock, [5.0] * 10)[-1] == 1 and clock.now <= 1000 + 10


def test_a_continued_budget_goes_on_where_it_was(clock):
    first = Budget(seconds=60.0)
    first.start()
    for _ in range(200):
        clock.now += 0.1
        step, progress, elapsed = first.advance()
    assert elapsed == pytest.approx(20)
    clock.now += 10_000  # stopped for hours
    second, begin = Budget(seconds=60.0), clock.now
    second.start(step, progress, elapsed)
    while not second.finished:
        clock.now += 0.1
        assert second.advance()[1] >= progress
    assert clock.now - begin == pytest.approx(40, abs=0.5) and second.progress == 1
    third = Budget(steps=10)
    third.start(4, 0.4, 1.0)
    clock.now += 1
    assert third.advance()[:2] == (5, 0.5)


def test_figures_for_people(clock):
    budget = Budget(steps=100)
    budget.start()
    assert budget.seconds_left is None and budget.rate == 0 and budget.steps == 100
    for _ in range(20):
        clock.now += 0.5
        budget.advance()
    assert budget.seconds_left == pytest.approx(40) and budget.rate == pytest.approx(2)
    timed = Budget(seconds=100.0)
    timed.start()
    for _ in range(20):
        clock.now += 0.5
        timed.advance()
    assert timed.seconds_left == pytest.approx(90) and timed.steps == 200
