"""Stop requests: heard once, by whoever runs, and never left over for the next."""

import pytest

from MedSSLLib import stopping
from MedSSLLib.errors import CancelledError


@pytest.fixture(autouse=True)
def _fresh():
    with stopping.on_signals():
        yield
    assert not stopping.requested()


def test_outside_a_loop_a_request_is_raised_and_leaves_nothing_behind():
    with pytest.raises(CancelledError, match="why"):
        stopping.ask("why")
    assert not stopping.requested()


def test_inside_a_loop_the_first_request_waits_and_the_second_is_raised():
    with pytest.raises(CancelledError, match="second"), stopping.deferred():
        stopping.ask("first")
        assert stopping.requested()
        stopping.ask("second")


def test_a_loop_that_stopped_has_heard_the_request():
    with pytest.raises(CancelledError), stopping.deferred():
        stopping.ask("x")
        raise CancelledError("stopped in good order")
    with stopping.deferred():
        assert not stopping.requested()


def test_a_request_in_the_last_step_of_a_loop_is_left_to_the_next():
    with stopping.deferred():
        stopping.ask("x")
    with pytest.raises(CancelledError), stopping.deferred():
        assert stopping.requested()
        raise CancelledError("stopped in good order")


def test_an_inner_loop_does_not_end_the_outer_one():
    with stopping.deferred():
        with stopping.deferred():
            pass
        stopping.ask("x")
        assert stopping.requested()
        with pytest.raises(CancelledError):
            stopping.ask("again")
        stopping._asked.clear()
