"""What self-training can be told, and the run it starts from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from MedSSLLib.config.commands import SelfTrainConfig
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.data.cache import Cache
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.selftraining.pseudo_labels import SUMMARY
from MedSSLLib.training.context import Preparation, resolve_weights
from MedSSLLib.training.run_folder import read_config, read_data, read_run


def with_labels_of_start(project: Project, config: RunConfig, run: str) -> RunConfig:
    """The settings with the labelled cases of the run started from, where neither the project nor
    the settings name any.

    Raises:
        InputError: the run does not exist, or is not finished.
    """
    weights = resolve_weights(project, run)
    named = any(case.label for case in project.labelled)
    if named or config.labelled is not None or config.resume or weights is None:
        return config
    data = read_run(weights.parent)["data"]
    there = {case.name for case in project.pool if case.label}
    labelled = [*data.get("labelled", ()), *data.get("validation", ())]
    theirs = read_config(weights.parent).annotated_slices
    return config.override(
        {
            "labelled": tuple(name for name in labelled if name in there),
            "annotated_slices": config.annotated_slices or theirs,
        }
    )


def start_weights(project: Project, run: str) -> Path | None:
    """The weights of the run to start from; None for no name.

    Raises:
        InputError: it is not a finished segmentation run of this project with this project's
            classes.
    """
    weights = resolve_weights(project, run)
    if weights is None:
        return None
    if weights != project.run_folder(weights.parent.name) / WEIGHTS:
        raise InputError(
            "is not a run of this project",
            file=run,
            remedy="Name a finished fine-tuning run with --from",
        )
    if read_config(weights.parent).command == "pretrain":
        raise InputError(
            f"run {run!r} is a pre-trained encoder", remedy=f"Use --init {run} instead of --from"
        )
    theirs, ours = read_data(weights.parent).classes, project.classes
    if len(ours) == 1:
        raise InputError(
            f"run {run!r} segments {', '.join(theirs[1:])}, but no labelled case of this project "
            "tells its classes",
            file=str(project.folder),
            remedy="Name labelled cases with --labelled",
        )
    if theirs != ours:
        raise InputError(
            f"run {run!r} segments {', '.join(theirs[1:])}, this project {', '.join(ours[1:])}",
            remedy="Fine-tune again with the classes of the project",
        )
    return weights


def require_all_classes(project: Project, cache: Cache, cases: Iterable[Case]) -> None:
    """Raises InputError for classes without a labelled voxel."""
    found = {
        value
        for case in cases
        for value, places in cache.foreground(case.name).items()
        if len(places)
    }
    missing = [name for index, name in enumerate(project.classes) if index and index not in found]
    if missing:
        raise InputError(
            f"the class {', '.join(missing)} has no labelled voxel in the chosen cases",
            file=str(project.folder),
            remedy="Annotate slices that show it, or add a case to --labelled",
        )


def check_names(options: SelfTrainConfig, targets: Collection[str]) -> None:
    """Raises InputError for accepted or rejected cases that get no pseudo-labels, or that are
    both.
    """
    accept, reject = set(options.accept), set(options.reject)
    for name in sorted((accept | reject) - set(targets)):
        raise InputError(
            "gets no pseudo-label, so it cannot be accepted or rejected",
            case=name,
            remedy="Name unlabelled or partly annotated cases",
        )
    for name in sorted(accept & reject):
        raise InputError(
            "is accepted and rejected", case=name, remedy="Take it out of one of the two"
        )


def with_share(first: Sequence[Case], others: Sequence[Case], share: float) -> tuple[Case, ...]:
    """The cases, the first ones so often that they are about `share` of the list, or more; each at
    least once.
    """
    times = round(share / (1 - share) * len(others) / len(first)) if first else 1
    return (*first,) * max(times, 1) + (*others,)


def warn_of_idle_settings(ready: Preparation, options: SelfTrainConfig) -> None:
    """Say which settings of fine-tuning were given and do nothing here."""
    config = ready.config
    if options.start and (config.semi != "none" or config.mixup):
        ready.events.emit(
            "warning",
            message="--semi and --mixup train the first model only; with --from it is there "
            "already, so they do nothing.",
        )
    if options.soft and not options.pseudo_weight:
        ready.events.emit(
            "warning", message="options.soft does nothing: options.pseudo_weight is 0."
        )
    if options.recipe == "mixing" and options.confident > 0 and not options.pseudo_weight:
        ready.events.emit(
            "warning", message="options.confident does nothing: options.pseudo_weight is 0."
        )
    if options.weight and len(ready.project.classes) == 2:
        ready.events.emit(
            "warning",
            message="With one foreground class the contrastive loss is zero; only the "
            "pseudo-labels themselves teach.",
        )
    if config.training.folds:
        ready.events.emit("warning", message="training.folds does nothing in self-training.")


def adopt_heads(ready: Preparation, start: Path | None) -> Preparation:
    """With or without heads on coarser levels, as the network started from."""
    if start is None:
        return ready
    deep = read_config(start.parent).network.deep_supervision
    return replace(ready, config=ready.config.override({"network.deep_supervision": deep}))


def latest_pseudo_labels(start: Path | None) -> Path | None:
    """The folder of the last finished round of pseudo-labels of the run started from."""
    done = list(start.parent.glob(f"pseudo/round-*/{SUMMARY}")) if start else []
    return max(
        (path.parent for path in done), key=lambda p: int(p.name.rpartition("-")[2]), default=None
    )
