"""Before and after training: which slices to annotate next, and how good segmentations are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from MedSSLLib.api.arguments import (
    PathLike,
    SuggestionOptions,
    opened_project,
    refuse_unknown_arguments,
    without_reporting,
)
from MedSSLLib.api.run import RunLike, name_of
from MedSSLLib.api.session import session
from MedSSLLib.project.project import Project

if TYPE_CHECKING:
    from MedSSLLib.active_learning.suggest import Suggestion


def suggest(
    project: Project | PathLike,
    budget: int,
    *,
    run: RunLike | None = None,
    also: Sequence[RunLike] = (),
    out: PathLike | None = None,
    **options: Unpack[SuggestionOptions],
) -> list[Suggestion]:
    """Say which slices to annotate next, best first; also written to ``suggestions.json``.

    Args:
        project: or its folder.
        budget: number of slices.
        run: finished run whose view of the slices counts.
        also: further trained runs; where the models disagree counts as unsure.
        out: another JSON file to write.
        **options: see SuggestionOptions.

    Raises:
        InputError: the strategy needs a run that was not given, or nothing is left to annotate.
    """
    refuse_unknown_arguments("suggest", options, SuggestionOptions.__optional_keys__)
    from MedSSLLib.active_learning.suggest import SuggestOptions, run_suggest

    project = opened_project(project)
    names = tuple(name_of(project, one) for one in also)
    chosen = SuggestOptions(budget, also=names, **without_reporting(options))
    name = None if run is None else name_of(project, run)
    with session(options) as events:
        return run_suggest(project, name, chosen, events, None if out is None else Path(out))


def evaluate(
    predictions: PathLike,
    references: PathLike,
    *,
    project: Project | PathLike | None = None,
    out: PathLike | None = None,
    tolerance: float = 1.0,
) -> dict[str, Any]:
    """Compare segmentations with reference labels of the same names.

    Args:
        predictions: folder of ``CASE.nii.gz`` or ``.nrrd``.
        references: folder of labels with the same names.
        project: names the classes, and says which slices count. Without it, segmentations of Slicer
            are compared by the names of their segments, other files by value.
        out: JSON file to write.
        tolerance: of surface Dice in mm.

    Returns:
        As :func:`MedSSLLib.evaluation.evaluate.evaluate_folder`: ``summary``, ``cases`` ...

    Raises:
        InputError: a folder is missing, or no case could be scored.
    """
    from MedSSLLib.cli.apply import scored_by
    from MedSSLLib.evaluation.evaluate import evaluate_folder

    known = {} if project is None else scored_by(opened_project(project))
    result = None if out is None else Path(out)
    return evaluate_folder(Path(predictions), Path(references), result, tolerance, **known)
