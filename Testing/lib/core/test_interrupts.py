"""Stop requests: heard once, by whoever runs, and never left over for the next."""

import pytest

from MedSSLLib.core import interrupts
from MedSSLLib.core.errors import CancelledError


@pytest.fixture(autouse=True)
def _fresh():
    with interrupts.on_signals():
        yield
    assert not interrupts.requested()


def test_outside_a_loop_a_request_is_raised_and_leaves_nothing_behind():
    with pytest.raises(CancelledError, match="why"):
        interrupts.ask("why")
    assert not interrupts.requested()


def test_inside_a_loop_the_first_request_waits_and_the_second_is_raised():
    with pytest.raises(CancelledError, match="second"), interrupts.deferred():
        interrupts.ask("first")
        assert interrupts.requested()
        interrupts.ask("second")


def test_a_loop_that_stopped_has_heard_the_request():
    with pytest.raises(CancelledError), interrupts.deferred():
        interrupts.ask("x")
        raise CancelledError("stopped in good order")
    with interrupts.deferred():
        assert not interrupts.requested()


def test_a_request_in_the_last_step_of_a_loop_is_left_to_the_next():
    with interrupts.deferred():
        interrupts.ask("x")
    with pytest.raises(CancelledError), interrupts.deferred():
        assert interrupts.requested()
        raise CancelledError("stopped in good order")


def test_an_inner_loop_does_not_end_the_outer_one():
    with interrupts.deferred():
        with interrupts.deferred():
            pass
        interrupts.ask("x")
        assert interrupts.requested()
        with pytest.raises(CancelledError):
            interrupts.ask("again")
        interrupts._asked.clear()
