"""Settings of self-training and of completion, beside those that every run has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from MedSSLLib.config.messages import chosen
from MedSSLLib.config.run import Frozen, RunConfig


class CompletionConfig(Frozen):
    """Settings of completing a volume."""

    case: str = Field("", description="The case that is completed.")
    out: str = Field("", description="Folder of the result; empty = the run folder.")
    edge: float = Field(
        2.0, gt=0, description="Softness of interpolated outlines in mm. Not from the paper."
    )
    spread: float = Field(
        0.4, ge=0, description="Its growth per mm from a drawn slice. Not from the paper."
    )
    network: float = Field(
        1.0, ge=0, description="Exponent of the network's probabilities. Not from the paper."
    )


def completion_options(config: RunConfig) -> CompletionConfig:
    """The settings from ``options``. Raises InputError as :func:`~MedSSLLib.config.messages.chosen`
    does.
    """
    return chosen(CompletionConfig, config.options)


Filter = Literal["none", "consistency", "confidence"]
Clean = Literal["none", "components", "crf"]


class SelfTrainConfig(Frozen):
    """Settings of self-training."""

    start: str = Field(
        "", description="Finished fine-tuning run to start from; empty = stage 1 is trained here."
    )
    rounds: int = Field(
        3, ge=1, description="Rounds of pseudo-labels and joint training (released code: 3)."
    )
    restart: bool = Field(
        False, description="A round starts from stage 1 (released code), not from the round before."
    )
    matching: Literal["inter", "intra"] = Field(
        "inter", description="Pairs of images, or two views of one image."
    )
    weight: float = Field(
        0.1, ge=0, description="Lambda, the weight of the contrast. Not from the paper."
    )
    first_share: float = Field(
        0.4, gt=0, lt=1, description="Share of the budget for stage 1. Not from the paper."
    )
    temperature: float = Field(0.1, gt=0, description="Temperature (released code: 0.1).")
    pseudo_weight: float = Field(
        0.5, ge=0, description="Segmentation loss on pseudo-labels. Not from the paper."
    )
    drawn_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="About the least share of partly drawn cases, whose "
        "pseudo-labels are the best, in batches with pseudo-labels. Not from the paper.",
    )
    soft: bool = Field(
        False,
        description="Pseudo-labels are probabilities weighted by confidence. Not from the paper.",
    )
    shapes: bool = Field(
        True,
        description="Pseudo-labels of partly drawn cases also follow the shapes between their "
        "drawn slices. Not from the paper.",
    )
    clean: Clean = Field("components", description="Clean-up; the released code has a dense CRF.")
    filter: Filter = Field(
        "none", description="Which pseudo-labels are used; the paper found no gain from a filter."
    )
    threshold: float = Field(
        0.8, ge=0, le=1, description="Least agreement or confidence (paper tried 0.7 and 0.8)."
    )
    accept: tuple[str, ...] = Field(
        (), description="Cases always used; with `start` as they are in that run."
    )
    reject: tuple[str, ...] = Field((), description="Cases whose pseudo-labels are never used.")


def self_train_options(config: RunConfig) -> SelfTrainConfig:
    """The settings from ``options``. Raises InputError as :func:`~MedSSLLib.config.messages.chosen`
    does.
    """
    return chosen(SelfTrainConfig, config.options)
