"""What self-training can be told, and the run it starts from."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from MedSSLLib.config.commands import SelfTrainConfig
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.data.cache import Cache
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.selftraining.pseudo_labels import SUMMARY
from MedSSLLib.training.context import TrainingContext
from MedSSLLib.training.run_folder import RunFolder, find_start


def with_labels_of_start(project: Project, config: RunConfig, name: str) -> RunConfig:
    """The settings with the labelled cases of the run started from.

    Only where neither the project nor the settings name any.

    Raises:
        InputError: the run does not exist, or is not finished.
    """
    named = any(case.label for case in project.labelled)
    if named or config.labelled is not None or config.resume:
        return config
    run = find_start(project, name)
    if run is None or not run.recorded:
        return config
    there = {case.name for case in project.pool if case.label}
    labelled = [name for name in (*run.data.labelled, *run.data.validation) if name in there]
    slices = config.annotated_slices or run.config.annotated_slices
    return config.override({"labelled": tuple(labelled), "annotated_slices": slices})


def find_model(project: Project, name: str) -> RunFolder | None:
    """The run to start from; None for no name.

    Raises:
        InputError: it is not a finished segmentation run of this project with this project's
            classes.
    """
    run = find_start(project, name)
    if run is None:
        return None
    if run.weights_file != project.run_folder(run.name) / WEIGHTS:
        raise InputError(
            "is not a run of this project",
            file=name,
            remedy="Name a finished fine-tuning run with --from",
        )
    if run.config.command == "pretrain":
        raise InputError(
            f"run {name!r} is a pre-trained encoder", remedy=f"Use --init {name} instead of --from"
        )
    theirs, ours = run.data.classes, project.classes
    if len(ours) == 1:
        raise InputError(
            f"run {name!r} segments {', '.join(theirs[1:])}, but no labelled case of this project "
            "tells its classes",
            file=str(project.folder),
            remedy="Name labelled cases with --labelled",
        )
    if theirs != ours:
        raise InputError(
            f"run {name!r} segments {', '.join(theirs[1:])}, this project {', '.join(ours[1:])}",
            remedy="Fine-tune again with the classes of the project",
        )
    return run


def require_all_classes(project: Project, cache: Cache, cases: Iterable[Case]) -> None:
    """Raises InputError for classes without a labelled voxel."""
    found: set[int] = set()
    for case in cases:
        found |= {value for value, places in cache.foreground(case.name).items() if len(places)}
    missing = [name for index, name in enumerate(project.classes) if index and index not in found]
    if missing:
        raise InputError(
            f"the class {', '.join(missing)} has no labelled voxel in the chosen cases",
            file=str(project.folder),
            remedy="Annotate slices that show it, or add a case to --labelled",
        )


def check_names(options: SelfTrainConfig, targets: Collection[str]) -> None:
    """Raises InputError for accepted or rejected cases without pseudo-labels, or that are both."""
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


def warn_of_idle_settings(context: TrainingContext, options: SelfTrainConfig) -> None:
    """Say which settings of fine-tuning were given and do nothing here."""
    config = context.config
    if options.start and (config.semi != "none" or config.mixup):
        context.warn(
            "--semi and --mixup train the first model only; with --from it is there already, so "
            "they do nothing."
        )
    if options.soft and not options.pseudo_weight:
        context.warn("options.soft does nothing: options.pseudo_weight is 0.")
    if options.weight and len(context.project.classes) == 2:
        context.warn(
            "With one foreground class the contrastive loss is zero; only the pseudo-labels "
            "themselves teach."
        )
    if config.training.folds:
        context.warn("training.folds does nothing in self-training.")


def adopt_heads(context: TrainingContext, model: RunFolder | None) -> TrainingContext:
    """With or without heads on coarser levels, as the model started from."""
    if model is None:
        return context
    return context.override({"network.deep_supervision": model.config.network.deep_supervision})


def latest_pseudo_labels(model: RunFolder | None) -> Path | None:
    """The folder of the last finished round of pseudo-labels of the run started from."""
    if model is None:
        return None
    folders = [path.parent for path in model.folder.glob(f"pseudo/round-*/{SUMMARY}")]
    return max(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
