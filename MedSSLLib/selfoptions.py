"""What self-training can be told, and the run it starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from MedSSLLib.config import Frozen, RunConfig
from MedSSLLib.errors import InputError
from MedSSLLib.preparation import Preparation, resolve_weights
from MedSSLLib.project import Project
from MedSSLLib.pseudo import SUMMARY, Clean, Filter
from MedSSLLib.refusals import chosen
from MedSSLLib.runfolder import WEIGHTS, read_config, read_data


class SelfTrainConfig(Frozen):
    """Settings of self-training."""

    start: str = Field("", description="Finished fine-tuning run to start from; empty = stage 1 is trained here.")
    rounds: int = Field(3, ge=1, description="Rounds of pseudo-labels and joint training (released code: 3).")
    restart: bool = Field(False, description="A round starts from stage 1 (released code), not from the round before.")
    matching: Literal["inter", "intra"] = Field("inter", description="Pairs of images, or two views of one image.")
    weight: float = Field(0.1, ge=0, description="Lambda, the weight of the contrast. Not from the paper.")
    first_share: float = Field(0.4, gt=0, lt=1, description="Share of the budget for stage 1. Not from the paper.")
    temperature: float = Field(0.1, gt=0, description="Temperature (released code: 0.1).")
    pseudo_weight: float = Field(0.5, ge=0, description="Segmentation loss on pseudo-labels. Not from the paper.")
    soft: bool = Field(False, description="That loss on probabilities weighted by confidence. Not from the paper.")
    clean: Clean = Field("components", description="Clean-up; the released code has a dense CRF.")
    filter: Filter = Field("none", description="Which pseudo-labels are used; the paper found no gain from a filter.")
    threshold: float = Field(0.8, ge=0, le=1, description="Least agreement or confidence (paper tried 0.7 and 0.8).")
    accept: tuple[str, ...] = Field((), description="Cases always used; with `start` as they are in that run.")
    reject: tuple[str, ...] = Field((), description="Cases whose pseudo-labels are never used.")


def self_train_options(config: RunConfig) -> SelfTrainConfig:
    """The settings from ``options``. Raises InputError as :func:`~MedSSLLib.refusals.chosen` does."""
    return chosen(SelfTrainConfig, config.options)


def start_weights(project: Project, run: str) -> Path | None:
    """The weights of the run to start from; None for no name.

    Raises:
        InputError: it is not a finished segmentation run of this project with this project's classes.
    """
    weights = resolve_weights(project, run)
    if weights is None:
        return None
    if weights != project.run_folder(weights.parent.name) / WEIGHTS:
        raise InputError("is not a run of this project", file=run, remedy="Name a finished fine-tuning run with --from")
    if read_config(weights.parent).command == "pretrain":
        raise InputError(f"run {run!r} is a pre-trained encoder", remedy=f"Use --init {run} instead of --from")
    theirs, ours = read_data(weights.parent).classes, project.classes
    if theirs != ours:
        raise InputError(f"run {run!r} segments {', '.join(theirs[1:])}, this project {', '.join(ours[1:])}",
                         remedy="Fine-tune again with the classes of the project")
    return weights


def adopt_heads(ready: Preparation, start: Path | None) -> Preparation:
    """With or without heads on coarser levels, as the network started from."""
    if start is None:
        return ready
    deep = read_config(start.parent).network.deep_supervision
    return replace(ready, config=ready.config.override({"network.deep_supervision": deep}))


def latest_pseudo_labels(start: Path | None) -> Path | None:
    """The folder of the last finished round of pseudo-labels of the run started from."""
    done = list(start.parent.glob(f"pseudo/round-*/{SUMMARY}")) if start else []
    return max((path.parent for path in done), key=lambda p: int(p.name.rpartition("-")[2]), default=None)
