"""Settings of self-training, of completion and of live training, beside those of every run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from MedSSLLib.config.messages import chosen
from MedSSLLib.config.parts import Range
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


OF_CONTRAST: dict[str, Any] = {"rounds": 3, "weight": 0.1}
"""Defaults of the document's method that are not those of mixing."""


class SelfTrainConfig(Frozen):
    """Settings of self-training."""

    recipe: Literal["mixing", "contrast"] = Field(
        "mixing",
        description="mixing: labelled and pseudo-labelled images in one image (BCP); contrast: "
        "local contrastive loss beside the labels, the paper's.",
    )
    start: str = Field(
        "", description="Finished fine-tuning run to start from; empty = stage 1 is trained here."
    )
    rounds: int = Field(
        5,
        ge=1,
        description="Rounds of pseudo-labels and training; 3 with contrast (released code). Not "
        "from the paper.",
    )
    restart: bool = Field(
        False, description="A round starts from stage 1 (released code), not from the round before."
    )
    matching: Literal["inter", "intra"] = Field(
        "inter", description="Pairs of images, or two views of one image."
    )
    weight: float = Field(
        0.0,
        ge=0,
        description="Lambda, the weight of the contrast; 0.1 with contrast. Not from the paper.",
    )
    first_share: float = Field(
        0.4, gt=0, lt=1, description="Share of the budget for stage 1. Not from the paper."
    )
    temperature: float = Field(0.1, gt=0, description="Temperature (released code: 0.1).")
    pseudo_weight: float = Field(
        0.5, ge=0, description="Segmentation loss on pseudo-labels. Not from the paper."
    )
    rectangle: Range = Field(
        (0.4, 0.8),
        description="Side of the rectangle that is mixed in, share of the patch. Not from the "
        "paper.",
    )
    alone_every: int = Field(
        4,
        ge=0,
        description="Of so many samples one is pseudo-labelled alone; 0 = none. Not from the "
        "paper.",
    )
    plain_every: int = Field(
        2,
        ge=0,
        description="In the last round of mixing, of so many steps one has patches as they are, "
        "and only these move the statistics of batch normalisation; 0 = none. Not from the paper.",
    )
    confident: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Least probability of a pseudo-labelled voxel that mixing counts; 0 = all "
        "(UniMatch: 0.95, of a teacher in every step).",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Which model is kept: that of the last round, or an earlier one that does "
        "better on held-out cases, or without them clearly agrees better. Not from the paper.",
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

    @property
    def likely(self) -> bool:
        """Whether the probabilities behind the pseudo-labels are needed."""
        return self.soft or (self.recipe == "mixing" and self.confident > 0)

    @model_validator(mode="before")
    @classmethod
    def _of_recipe(cls, given: Any) -> Any:
        """The defaults of the recipe, where nothing else is given."""
        if isinstance(given, dict) and given.get("recipe") == "contrast":
            return {**OF_CONTRAST, **given}
        return given


def self_train_options(config: RunConfig) -> SelfTrainConfig:
    """The settings from ``options``. Raises InputError as :func:`~MedSSLLib.config.messages.chosen`
    does.
    """
    return chosen(SelfTrainConfig, config.options)


class LiveConfig(Frozen):
    """Settings of live training. None of them is from a paper."""

    mixing: bool = Field(
        True,
        description="Unlabelled scans teach too, once the model predicts well what is drawn next "
        "(`mixing_dice`) and the loss on the drawn slices is flat, or after `mixing_after` steps.",
    )
    mixing_dice: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Least mean Dice of the last five drawn slices, predicted before they were "
        "learnt from, from which on they teach; 0 = without a condition.",
    )
    mixing_after: int = Field(
        300,
        ge=0,
        description="Steps after which they do at latest; counted anew when the classes change.",
    )
    mixing_agreement: float = Field(
        0.85,
        ge=0,
        le=1,
        description="Least Dice between the segmentations of a scan and of the same scan made "
        "smaller, for it to teach; 0 = all teach.",
    )
    mixing_cases: int = Field(12, ge=1, description="Scans that are predicted in turn for mixing.")
    pseudo_weight: float = Field(
        0.5, ge=0, description="Weight of a pseudo-labelled voxel against a drawn one (BCP: 0.5)."
    )
    confident: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Least probability of a pseudo-labelled voxel that counts; 0 = all.",
    )
    known_after: int = Field(
        12, ge=1, description="Steps on new slices after which a preview counts as knowing them."
    )
    fresh_share: float = Field(
        0.5, ge=0, le=1, description="Share of a batch that new slices have for these steps."
    )
    warmup_steps: int = Field(
        10, ge=0, description="Steps over which the learning rate rises; then it stays."
    )
    flat_steps: int = Field(
        100, ge=2, description="Steps whose mean loss is compared with that of as many before."
    )
    flat_gain: float = Field(
        0.02, ge=0, description="The loss is flat where it fell by no more than this share."
    )
    least_steps: int = Field(
        200, ge=0, description="Steps after a change of the drawing before training may rest."
    )
    most_steps: int = Field(
        2000, ge=1, description="Steps after a change of the drawing after which training rests."
    )
    look_every: float = Field(
        0.5, gt=0, description="Seconds between two looks at the files of the project."
    )


def live_options(config: RunConfig) -> LiveConfig:
    """The settings from ``options``. Raises InputError as :func:`~MedSSLLib.config.messages.chosen`
    does.
    """
    return chosen(LiveConfig, config.options)
