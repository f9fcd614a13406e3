"""``metadata.json`` of a MONAI bundle, and the schema that it is checked with offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from MedSSLLib import __version__
from MedSSLLib.data.plan import COMPRESSED_CT, Plan
from MedSSLLib.data.preprocessing import normalisation
from MedSSLLib.inference.model import Model

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_TEXTS = (
    "version",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "task",
    "description",
    "authors",
    "copyright",
)


def metadata(model: Model, name: str) -> dict[str, Any]:
    """``metadata.json`` of the bundle specification, with the plan under ``medssl``."""
    import monai

    plan, classes = model.plan, len(model.classes)
    shape = [f"{step}*n" for step in np.prod(plan.strides, axis=0).tolist()]
    channels = {str(index): modality for index, modality in enumerate(plan.modality)}
    image = _tensor("image", plan.channels, shape, channels) | {
        "modality": ", ".join(plan.modality)
    }
    answer = _tensor(
        "segmentation", classes, shape, {str(i): text for i, text in enumerate(model.classes)}
    )
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported"},
        "name": name,
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.0", "scipy": "1.11"},
        "task": f"Segmentation of {', '.join(model.classes[1:])}",
        "description": f"{plan.dim}D U-Net trained with MedSSL {__version__}, run {name}.",
        "authors": "whoever trained it (see docs/README.md)",
        "copyright": "as for the training data",
        "intended_use": "Research. Not a medical device; every result needs review by a person.",
        "image_classes": ", ".join(plan.modality),
        "pred_classes": ", ".join(model.classes),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": answer}},
        "medssl": plan_facts(model),
    }


def _tensor(kind: str, channels: int, shape: list[str], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": kind,
        "num_channels": channels,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": dict(names),
    }


def plan_facts(model: Model) -> dict[str, Any]:
    """What a user of the bare network must know: plan, classes, and what to do before and after."""
    return {
        "format": "medssl-model",
        "format_version": 1,
        "plan": model.plan.model_dump(mode="json"),
        "classes": list(model.classes),
        "values": list(model.values),
        "one_piece": list(model.single_component),
        "undivided": list(model.connected_on_slices),
        "connected": model.single_foreground,
        "size_multiple": np.prod(model.plan.strides, axis=0).tolist(),
        **_hounsfield(model.plan),
        "percentiles": normalisation.PERCENTILES,
        "preprocessing": "orient to d, h, w; clip CT in Hounsfield units to hounsfield_range, "
        "where hounsfield_arcsinh is not null subtract its first number, divide by its second and "
        "take the arcsinh, then "
        "subtract the first and divide by the second number of hounsfield_scale; clip others to "
        "percentiles of the voxels that are not background, to zero mean and unit deviation over "
        "those; background is padding (a value that fills half a face of the volume or two of its "
        "corners, set to the lower end where it is brighter) and values darker than nearly all "
        "others that far more voxels have than have values near them; resample to the plan's "
        "spacing; pad each axis at its end, with the edge value, to a multiple of size_multiple",
    }


def _hounsfield(plan: Plan) -> dict[str, Any]:
    """Numbers by which CT in Hounsfield units is scaled under the plan's rule."""
    if plan.intensities < COMPRESSED_CT:
        return {
            "hounsfield_range": normalisation.LINEAR_RANGE,
            "hounsfield_arcsinh": None,
            "hounsfield_scale": normalisation.LINEAR_SCALE,
        }
    return {
        "hounsfield_range": normalisation.HU_RANGE,
        "hounsfield_arcsinh": (normalisation.HU_CENTRE, normalisation.HU_WIDTH),
        "hounsfield_scale": normalisation.HU_SCALE,
    }


def schema() -> dict[str, Any]:
    """A JSON schema with the fields that the bundle specification asks for.

    With it metadata is checked offline.
    """
    tensor = {
        "type": "object",
        "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
        "properties": {
            "num_channels": {"type": "integer", "minimum": 1},
            "spatial_shape": {
                "type": "array",
                "minItems": 2,
                "items": {"type": ["integer", "string"]},
            },
            "value_range": {"type": "array", "items": {"type": "number"}},
        },
    }
    tensors = {"type": "object", "minProperties": 1, "additionalProperties": tensor}
    return {
        "$schema": "https://json-schema.org/draft/2019-09/schema",
        "type": "object",
        "required": ["schema", "required_packages_version", "network_data_format", *_TEXTS],
        "properties": {
            **{name: {"type": "string", "minLength": 1} for name in _TEXTS},
            "required_packages_version": {"type": "object"},
            "network_data_format": {
                "type": "object",
                "required": ["inputs", "outputs"],
                "properties": {"inputs": tensors, "outputs": tensors},
            },
        },
    }
