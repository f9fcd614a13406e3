"""Short commands of the library inside a generator of steps: `events = yield from answerSteps(...)`."""

from .runner import Job, Runner


class CallError(Exception):
    """A command did not do what was asked; the text says why."""


def answerSteps(title, arguments):
    """Run a command in its own process; yields its runner until it has ended.

    Returns its events. Raises CallError with the command's own message.
    """
    runner, events, outcomes = Runner(), [], []
    runner.reported.connect(events.append)
    runner.ended.connect(outcomes.append)
    runner.start(Job(title, arguments))
    try:
        while not outcomes:
            yield runner
    finally:
        if not outcomes:
            runner.kill()
    if outcomes[0].state != "done":
        raise CallError(outcomes[0].message or f"{title}: {outcomes[0].state}")
    return events
