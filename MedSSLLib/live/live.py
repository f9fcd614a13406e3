"""Live training: a run that goes on while a person draws, from its start to its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from MedSSLLib.config.commands import live_options
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core import interrupts
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import FileLock
from MedSSLLib.data.cache import Cache
from MedSSLLib.data.plan import Plan, canonical_axes
from MedSSLLib.finetuning.complete import in_slices
from MedSSLLib.images.labels import slice_axis
from MedSSLLib.live.keeping import Keeper
from MedSSLLib.live.labels import LiveLabels
from MedSSLLib.live.learner import Earlier, Learner
from MedSSLLib.live.requests import Nobody, RequestSource
from MedSSLLib.live.session import Session
from MedSSLLib.live.shown import Shown
from MedSSLLib.live.teaching import Teaching
from MedSSLLib.live.watch import DrawnCase, Watch
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import LIVE_LOCK
from MedSSLLib.training.checkpoint import load_tensors, unprefixed
from MedSSLLib.training.context import TrainingContext, open_context
from MedSSLLib.training.planning import choose_plan
from MedSSLLib.training.run_folder import find_start

PREVIEWS = "previews"


def run_live(
    project: Project,
    config: RunConfig,
    events: Events,
    source: RequestSource | None = None,
    case: str = "",
    steps: int | None = None,
) -> Path | None:
    """Train while a person draws, until a request or the time limit ends it.

    Args:
        project: the project; its files are looked at again and again.
        config: the settings.
        events: where to tell.
        source: of requests; nobody asks by default.
        case: the case that is looked at first.
        steps: after which the run ends by itself; None for no such limit.

    Returns:
        The run's folder; None where nothing was drawn.

    Raises:
        InputError: settings that do not fit together, or a case that does not exist.
        MedSSLError: live training is on in another process already.
        CancelledError: stopped by a signal; the checkpoint is kept.
        GuardError: a guard stopped the run; the last good checkpoint is kept.
    """
    shown_first = project.case(case) if case else None
    with ExitStack() as stack:
        stack.enter_context(FileLock(project.folder / LIVE_LOCK, timeout=0))
        stack.enter_context(_one_core_free())
        session = open_session(project, config, events, stack, source)
        session.steps = steps
        if shown_first is not None:
            session.show(shown_first.name, None)
        with interrupts.deferred():
            session.run()
            session.keeper.end(session.teaching)
        return None if session.learner is None else session.keeper.folder


def open_session(
    project: Project,
    config: RunConfig,
    events: Events,
    stack: ExitStack,
    source: RequestSource | None = None,
) -> Session:
    """A live run before its first step; its folder is held until the stack is closed.

    Args:
        project: the project.
        config: the settings.
        events: where to tell.
        stack: what is to be closed at the end.
        source: of requests; nobody asks by default.

    Raises:
        InputError: settings that do not fit together, or nothing to resume.
    """
    context = open_context(project, config, events, stack)
    options = live_options(context.config)
    context = context.with_options(options)
    start = find_start(project, context.config.init)
    context = in_slices(context, start).starting_from(start)
    keeper = Keeper(context.folder, events)
    maker = _Maker(context, keeper)
    watch = Watch(project, context.warn)
    teaching = Teaching(watch, maker, events, options.known_after, options.mixing_cases)
    stack.callback(teaching.close)
    if context.config.resume:
        keeper.take_up(teaching)
    if maker.can_predict:
        teaching.learner = maker(None, None)
    minutes = context.config.training.minutes
    return Session(
        events=events,
        options=options,
        source=source or Nobody(),
        teaching=teaching,
        shown=Shown(context.folder / PREVIEWS, events),
        keeper=keeper,
        seconds=None if minutes is None else 60 * minutes,
    )


class _Maker:
    """Makes the model when there is something to learn, or anew where the classes have changed."""

    def __init__(self, context: TrainingContext, keeper: Keeper) -> None:
        self._context = context
        self._keeper = keeper
        self._made = False

    @property
    def can_predict(self) -> bool:
        """Whether the start segments the project's classes, so that there is a model at once."""
        start, project = self._context.start, self._context.project
        if start is None or not start.recorded or start.config.command == "pretrain":
            return False
        return (start.data.classes, start.data.values) == (project.classes, project.values)

    def __call__(self, before: Learner | None, drawn: DrawnCase | None) -> Learner:
        project = Project.open(self._context.project.folder)
        context = replace(self._context, project=project)
        if before is not None:
            context = context.override({"resume": False})
            learner = self._learner(context, before.plan, before.labels, before.earlier())
        else:
            plan = _plan(context, drawn)
            labels = LiveLabels(Cache(project.cache_folder, plan))
            learner = self._learner(context, plan, labels, self._of_other_classes(context))
        self._keeper.begin(learner, project)
        return learner

    def _learner(
        self,
        context: TrainingContext,
        plan: Plan,
        labels: LiveLabels,
        earlier: Earlier | None,
    ) -> Learner:
        return Learner(context, plan, labels, live_options(context.config), earlier)

    def _of_other_classes(self, context: TrainingContext) -> Earlier | None:
        """The weights of the checkpoint to go on from, where the classes have changed since."""
        run, project = context.run, context.project
        if not context.config.resume:
            return None
        if (run.data.classes, run.data.values) == (project.classes, project.values):
            return None
        tensors, facts = load_tensors(run.folder / "checkpoint" / "live.safetensors")
        weights = {**unprefixed("module", tensors), **unprefixed("average", tensors)}
        return Earlier(weights, run.data.values, int(facts["state"]["step"]))


def _plan(context: TrainingContext, drawn: DrawnCase | None) -> Plan:
    """The plan of the run; a new 2D one has the slices along which most of the case is drawn."""
    labelled = [case for case in context.project.labelled if case.label]
    plan = choose_plan(context, context.project.pool, labelled=labelled)
    goes_on = context.config.resume or (context.start is not None and context.start.recorded)
    if plan.dim == 3 or goes_on or drawn is None or not drawn.case.annotated:
        return plan
    slices = drawn.case.annotated.slices
    if not slices:
        return plan
    axis = max(slices, key=lambda pair: len(pair[1]))[0]
    own = axis == slice_axis(drawn.geometry)
    direction = "own" if own else canonical_axes(drawn.geometry)[axis]
    return plan.model_copy(update={"slice_axis": direction})


@contextmanager
def _one_core_free() -> Iterator[None]:
    """Compute with one thread fewer than there are cores, so that the window stays alive."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, (os.cpu_count() or 2) - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
