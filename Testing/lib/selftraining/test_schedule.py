"""The time of a self-training run: predictions are part of it, and what is left is left for all of
the run.
"""

from dataclasses import replace

import pytest

from MedSSLLib.config.run import RunConfig
from MedSSLLib.selftraining.schedule import LEAST_OF_ROUND, Schedule
from Testing.lib.case_helpers import each


def schedule(rounds=3, first=0.4, **length):
    overrides = {f"training.{name}": value for name, value in length.items()}
    config = RunConfig.build("selftrain", method="local-contrast", overrides=overrides)
    return Schedule(config, rounds, first)


def run(plan, prediction, step=0.1):
    """Seconds of every stage when all keep to their budgets, and the time left that each told at
    its first step.
    """
    stages, told, spent = [], [], 0.0
    for number in range(plan.rounds + 1):
        if number:
            spent += prediction
            budget = plan.round(number, spent, prediction)
        elif plan.first:
            budget = plan.stage_one()
        else:
            continue
        budget._step_time = step
        before = spent
        spent += budget._seconds or budget.steps * step
        stages.append(spent - before)
        told.append((before, budget.seconds_left))
    return stages, told, spent


@each("first", [0.0, 0.4])
@each("prediction", [0.0, 10.0, 60.0])
def test_a_time_limit_includes_predictions(first, prediction):
    stages, told, spent = run(schedule(3, first, minutes=10), prediction)
    assert spent == pytest.approx(600)
    rounds = stages[1:] if first else stages
    assert rounds == pytest.approx([(600 * (1 - first)) / 3 - prediction] * 3)
    for before, left in told:
        assert left == pytest.approx(600 - before, abs=0.2)


def test_a_round_trains_even_where_predictions_take_all_the_time():
    stages, _, _ = run(schedule(2, 0.4, minutes=1), 100.0)
    assert stages == pytest.approx([24, LEAST_OF_ROUND * 18, LEAST_OF_ROUND * 18])


@each(
    ("minutes", "prediction", "spent", "rounds"),
    [
        (20, 30, 0, 5),
        (20, 240, 0, 2),  # half of 20 minutes holds two predictions of four
        (20, 240, 600, 1),
        (1, 600, 0, 1),  # one is always made
        (None, 600, 0, 5),  # steps are counted, not time
    ],
)
def test_fewer_rounds_are_made_where_predictions_would_take_the_time(
    minutes, prediction, spent, rounds
):
    length = {"steps": 100} if minutes is None else {"minutes": minutes}
    assert schedule(5, 0.0, **length).affordable(spent, prediction) == rounds


def test_steps_are_shared_out_and_the_time_left_counts_all_of_them():
    stages, told, spent = run(schedule(2, 0.25, steps=800), 20.0)
    assert stages == pytest.approx([20, 30, 30])
    assert told[0][1] == pytest.approx(80), "predictions are not known yet"
    assert told[1][1] == pytest.approx(30 + 20 + 30) and told[2][1] == pytest.approx(30)
    assert spent == pytest.approx(120)


def test_the_time_left_during_a_prediction():
    """A quarter of 50 seconds is over."""
    timed, counted = schedule(2, 0.4, minutes=10), schedule(2, 0.0, steps=800)
    assert timed.left(1, 250.0, 12.5, 0.25, None) == pytest.approx(600 - 262.5)
    least = LEAST_OF_ROUND * 0.3 * 600
    assert timed.left(1, 599.0, 12.5, 0.25, 0.1) == pytest.approx(37.5 + 50 + 2 * least)
    assert counted.left(1, 0.0, 12.5, 0.25, None) is None
    assert counted.left(1, 0.0, 12.5, 0.25, 0.1) == pytest.approx(37.5 + 40 + 50 + 40)
    assert counted.left(2, 0.0, 12.5, 0.25, 0.1) == pytest.approx(37.5 + 40)


def test_time_is_kept_free_for_what_comes_after_the_rounds():
    plan = replace(schedule(2, 0.25, minutes=10), closing=0.5)
    _, told, spent = run(plan, 40.0)
    assert spent == pytest.approx(600 - 20)
    assert [left for _, left in told[1:]] == pytest.approx([600 - b for b, _ in told[1:]], abs=0.2)
    counted = replace(schedule(2, 0.0, steps=800), closing=0.5)
    assert counted.left(2, 0.0, 10.0, 0.25, 0.1) == pytest.approx(30 + 20 + 40)
