"""Two gloo processes against one on the same global batch: gradients, weights, clocks."""

import pytest
import torch

from Testing.lib.parallel_helpers import TASKS, gradients_of_a_step, make_trainer, run_two


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_two(tmp_path_factory.mktemp("parallel"))


@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_give_the_gradients_of_one(two, tmp_path, kind):
    expected, losses = gradients_of_a_step(make_trainer(kind, tmp_path))
    for rank in range(2):
        found, theirs = two[rank][kind]
        assert (
            found.keys() == expected.keys() and max(g.abs().max() for g in expected.values()) > 1e-3
        )
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)
        for name, value in losses.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-5)


def test_processes_take_the_first_ones_clock(two):
    assert two[0]["agreed"] == two[1]["agreed"] == [0.25, 0.0]
    (step, progress, weights), (other_step, other_progress, other) = (
        two[0]["timed"],
        two[1]["timed"],
    )
    assert step == other_step >= 2 and progress == other_progress == 1
    assert all(torch.equal(t, other[n]) for n, t in weights.items()), (
        "both processes hold the same weights"
    )
