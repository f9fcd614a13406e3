"""Validated run configurations: the one home of every default.

A :class:`RunConfig` serves the command line, the Slicer panels, the checkpoint and the report.
Fields whose help says "not from the paper" were chosen here; presets override defaults, ``--set``
overrides presets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import PydanticCustomError

from MedSSLLib.config.lengths import PRESET_MINUTES, PRESET_STEPS, Preset
from MedSSLLib.config.messages import refusal, unknown
from MedSSLLib.config.parts import (
    AugmentConfig,
    Frozen,
    NetworkConfig,
    OptimiserConfig,
    Positive,
)
from MedSSLLib.core.errors import InputError

CommandName = Literal["pretrain", "finetune", "selftrain", "complete", "live"]


def _several(folds: int) -> int:
    if folds == 1:
        raise PydanticCustomError("one_fold", "must be 2 or more, or 0 for none")
    return folds


class TrainingConfig(Frozen):
    """Length, batch and selection of one training stage."""

    steps: int = Field(
        2000, ge=1, description="Optimiser steps; replaced by the time limit when `minutes` is set."
    )
    minutes: float | None = Field(
        None, gt=0, description="Time limit; the schedule is fitted to it."
    )
    batch: int | None = Field(
        None, ge=1, description="Samples per step over all processes; None = by dimension."
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Micro-batches per step: parts of the batch; batch norm and contrasts see "
        "one at a time.",
    )
    ema: float = Field(
        0.99, ge=0, lt=1, description="Decay of the averaged weights that are kept; 0 = off."
    )
    foreground: float = Field(
        0.5, ge=0, le=1, description="Share of samples centred on a labelled structure."
    )
    voxels: int | None = Field(
        None,
        ge=512,
        description="Voxels of a patch; None = by dimension, in 2D fewer where a coarser grid "
        "shows the labelled structures (not in preset paper).",
    )
    grid: Positive | Literal["auto"] | None = Field(
        "auto",
        description="Finest grid spacing in mm (2D: in the plane); None = that of the scans; "
        "auto = coarser where a patch would not show the labelled structures and their "
        "surroundings.",
    )
    folds: Annotated[int, AfterValidator(_several)] = Field(
        0, ge=0, description="Cross-validation folds before the final fit; 0 = none."
    )
    holdout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of cases held out where 10 have 5 slices or more, not strokes alone.",
    )
    validate_every: float = Field(
        0.1, gt=0, le=1, description="Share of the run between validations."
    )
    patience: int = Field(
        0,
        ge=0,
        description="Validations without improvement before stopping; 0 = never stop early.",
    )


class RunConfig(Frozen):
    """Everything that decides a run. Written to ``config.json`` with versions and data facts."""

    command: CommandName = Field(description="What is run: pretrain, finetune or selftrain.")
    method: str = Field(
        "supervised", description="Pre-training method, or 'supervised' and 'local-contrast'."
    )
    preset: Preset = Field(
        "standard",
        description="A few minutes, 10 to 20 minutes, 1 to 7 hours, or the published scale.",
    )
    name: str = Field("", description="Run name; made from the method and a number when empty.")
    dim: Literal["auto", "2d", "3d"] = Field(
        "auto", description="Slices or volumes; auto decides by the spacing."
    )
    device: str = Field("auto", description="auto (CUDA where there is one), cpu, cuda or cuda:N.")
    devices: int = Field(1, ge=1, description="Devices, one process each, that share a batch.")
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        "auto",
        description="Number format; auto is bf16 or 16 on CUDA cards, bf16 on CPUs that have it, "
        "else 32.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of everything random.")
    init: str = Field("none", description="Run name, weight file or 'none'.")
    labelled: tuple[str, ...] | None = Field(
        None, description="Cases whose labels may be read; None = the project's."
    )
    annotated_slices: int | None = Field(
        None, ge=1, description="Simulate this many annotated slices a labelled case."
    )
    freeze_encoder: bool = Field(False, description="Train the decoder only.")
    semi: Literal["none", "mean-teacher", "mixing"] = Field(
        "none", description="Whether unlabelled scans teach too."
    )
    consistency: float = Field(
        0.1, ge=0, description="Weight of Mean Teacher's consistency. Not from the paper."
    )
    confident: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Least probability of a voxel that the teacher of mixing labels (UniMatch).",
    )
    mixup: float = Field(0.0, ge=0, description="Beta parameter of Mixup; 0 = off.")
    network: NetworkConfig = Field(NetworkConfig(), description="Size of the network.")
    optimiser: OptimiserConfig = Field(OptimiserConfig(), description="How weights are updated.")
    augment: AugmentConfig = Field(AugmentConfig(), description="How views are changed at random.")
    training: TrainingConfig = Field(TrainingConfig(), description="Length, batch and selection.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the method's own configuration."
    )
    resume: bool = Field(False, description="Whether an unfinished run goes on.")

    @property
    def origin(self) -> str:
        """The run or weight file that training starts from, or 'none'."""
        start = (
            self.options.get("start") if self.command == "selftrain" else ""
        )  # of GCL it is a number
        return str(start or self.init or "none")

    @classmethod
    def build(
        cls,
        command: CommandName,
        *,
        preset: Preset = "standard",
        method: str = "supervised",
        of_method: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> RunConfig:
        """The preset, then what the method has for it, then ``settings``.

        Args:
            command: what is run.
            preset: name of the preset.
            method: name of the method.
            of_method: dotted keys that the method's preset changes
                (:func:`MedSSLLib.methods.options.configured` fills them in).
            **settings: fields of RunConfig; dotted keys (``{"optimiser.lr": "1e-3"}``) as
                ``overrides``.

        Raises:
            InputError: a key does not exist or a value does not fit, naming the nearest key.
        """
        overrides: dict[str, Any] = settings.pop("overrides", {}) or {}
        values: dict[str, Any] = {"command": command, "preset": preset, "method": method}
        given = {**(of_method or {}), **_dotted(settings), **overrides}
        usual = _preset(command, preset)
        if "training.steps" in given:  # who names steps wants them, and no time limit
            usual.pop("training.minutes", None)
        for key, value in {**usual, **given}.items():
            _assign(values, key, value)
        return cls._validated(values)

    def override(self, changes: dict[str, Any]) -> RunConfig:
        """A copy with dotted keys replaced (``{"training.steps": 10}``)."""
        values = self.model_dump()
        for key, value in changes.items():
            _assign(values, key, value)
        return self._validated(values)

    @classmethod
    def _validated(cls, values: dict[str, Any]) -> RunConfig:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise refusal(error, cls) from None


# averages short enough to follow a person, and small batches, so that a step is short
_LIVE: dict[str, Any] = {"training.ema": 0.95, "training.batch": 4}

_SMALL = {"network.widths": (16, 32, 64, 128, 128)}
_LARGE = {"network.widths": (32, 64, 128, 256, 320)}
_SIZES = {"quick": _SMALL, "standard": _SMALL, "overnight": _SMALL, "paper": _LARGE}
_OWN: dict[CommandName, dict[Preset, dict[str, Any]]] = {
    "live": {"quick": _LIVE, "standard": _LIVE, "paper": _LIVE},
    "selftrain": {
        "quick": {"options.rounds": 2},
        "paper": {
            "network.widths": (16, 32, 64, 128, 128, 128),
            "options.recipe": "contrast",
            "options.keep": "last",
            "options.pseudo_weight": 0.0,
            "options.first_share": 0.25,
            "options.restart": True,
            "options.shapes": False,
            "options.drawn_share": 0.0,
        },
    },
}

_FEWER = {
    "augment.noise": 0.1,
    "augment.brightness": 0.5,
    "augment.contrast": 0.3,
    "augment.gamma": 0.5,
}
_VIEWS: dict[CommandName, dict[str, Any]] = {
    "pretrain": _FEWER,  # probabilities of the PGL code, which has no contrast
    # the network sees one scan only, whose intensities and directions do not change
    "live": _FEWER | {"augment.rotation": 15.0, "augment.scale": (0.8, 1.25)},
    "complete": _FEWER | {"augment.rotation": 15.0, "augment.scale": (0.8, 1.25)},
}


# What runs of earlier versions go on with: options that came later, as they were before.
_CAME_LATER: dict[str, dict[str, Any]] = {
    "selftrain": {
        "shapes": False,
        "drawn_share": 0.0,
        "recipe": "contrast",
        "keep": "last",
        "plain_every": 0,
    },
    "gcl": {"pixel_level": -1},
}


# Options of earlier versions that the plan of a run, which is recorded, has made needless.
_GONE: dict[str, tuple[str, ...]] = {"live": ("slice_voxels",)}


def as_begun(config: RunConfig) -> RunConfig:
    """The settings of a run that has begun, with the options that it could not yet record, and
    without those that are no more.
    """
    kind = config.method if config.command == "pretrain" else config.command
    options = _CAME_LATER.get(kind, {}) | config.options
    kept = {key: value for key, value in options.items() if key not in _GONE.get(kind, ())}
    return config.override({"options": kept})


def _preset(command: CommandName, preset: Preset) -> dict[str, Any]:
    if preset not in PRESET_STEPS[command]:
        *names, last = PRESET_STEPS[command]
        raise InputError(
            f"{command} has no preset {preset!r}", remedy=f"Use {', '.join(names)} or {last}"
        )
    steps, minutes = PRESET_STEPS[command][preset], PRESET_MINUTES.get(preset, {}).get(command)
    length = {"training.steps": steps, "training.minutes": minutes}
    return {
        **_VIEWS.get(command, {}),
        **_SIZES[preset],
        **_dotted(length),
        **_OWN.get(command, {}).get(preset, {}),
    }


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted ``key``; text values are read as JSON where they are JSON."""
    model: type[BaseModel] | None = RunConfig
    *groups, leaf = key.split(".")
    target = values
    for group in groups:
        model = _group_model(model, group, key)
        target = target.setdefault(group, {})
    if model is not None and leaf not in model.model_fields:
        raise _unknown(key)
    target[leaf] = _parsed(value) if isinstance(value, str) else value


def _group_model(model: type[BaseModel] | None, group: str, key: str) -> type[BaseModel] | None:
    if model is None or group not in model.model_fields:
        raise _unknown(key)
    annotation = model.model_fields[group].annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if group != "options":
        raise _unknown(key)
    return None


def _parsed(text: str) -> Any:
    """JSON for lists, objects and null; pydantic converts the rest by the field's type."""
    if not text.strip().startswith(("[", "{", "null")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _unknown(key: str) -> InputError:
    return unknown(key, setting_names())


def setting_names() -> list[str]:
    """All dotted keys that ``--set`` takes (method options as ``options.NAME``)."""
    names = []
    for name, field in RunConfig.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names += [f"{name}.{leaf}" for leaf in annotation.model_fields]
        else:
            names.append(name)
    return names
