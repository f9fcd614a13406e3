"""A run as a MONAI bundle, which MONAI runs without MedSSL.

Weights, network definition, transforms and metadata.
"""

from __future__ import annotations

import inspect
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import atomic_folder, write_json
from MedSSLLib.data.preprocessing import normalisation, resampling
from MedSSLLib.images import components, noisy_pieces
from MedSSLLib.images.labels import IGNORE, label_type
from MedSSLLib.inference import sliding_window
from MedSSLLib.inference.model import Model
from MedSSLLib.interop import monai_bundle_scripts
from MedSSLLib.interop.monai_metadata import metadata, schema
from MedSSLLib.networks.unet import SegmentationNet

_WRITTEN_OUT = (
    sliding_window.tile_size,
    noisy_pieces.many_runs,
    noisy_pieces.labelled_classes,
    noisy_pieces.certainty_of,
    noisy_pieces.label_sums,
    noisy_pieces.blank,
    noisy_pieces.blank_poor,
    components.Pieces,
    components.pieces_of,
    components._joined,
    components._runs,
    components._touching,
    components.richest_components,
    components.surest_components,
    components.kept_pieces,
    components.class_map,
    normalisation.GreyScale,
    normalisation.normalise,
    normalisation.grey_scale,
    normalisation._padding,
    normalisation._on_faces,
    normalisation._stands_out,
    normalisation._within,
    normalisation._without,
    normalisation._in_hounsfield,
    normalisation._without_dark_peaks,
    normalisation._at_border,
    normalisation._sample,
    resampling.cubic,
    resampling._matrix,
    resampling.resample_separably,
)
_CONSTANTS = {
    normalisation: (
        "COMPRESSED_CT",
        "CROPPED_CT",
        "HU_RANGE",
        "HU_CENTRE",
        "HU_WIDTH",
        "HU_SCALE",
        "LINEAR_RANGE",
        "LINEAR_SCALE",
        "PERCENTILES",
        "PEAK",
        "LEAST_SHARE",
        "FACE_SHARE",
        "WHOLE_FACE",
        "_MOST_SAMPLES",
    ),
    noisy_pieces: ("RICHEST",),
    components: ("NEARLY_AS_SURE", "MOST_RUNS", "_BLOCK"),
}
_STAND_INS = (
    "from collections.abc import Collection, Iterator",
    "from dataclasses import dataclass",
    "from typing import NamedTuple",
    "from scipy import ndimage, sparse",
    "Kernel = Callable[[np.ndarray], np.ndarray]",
    "Interval = tuple[float, float]",
    f"IGNORE = {IGNORE}",
    "",
    "",
    "class InputError(ValueError):",
    "    def __init__(self, finding: str, remedy: str = '') -> None:",
    "        super().__init__(f'image {finding}. {remedy}')",
)
_README = """# {name}

{description}

    python -m monai.bundle run --bundle_root . --config_file configs/inference.json \\
        --dataset_dir IMAGES --output_dir OUT
    python -m monai.bundle verify_metadata --meta_file configs/metadata.json --filepath configs/schema.json

Run both in this folder. They need MONAI with its command line (`pip install monai nibabel scipy fire jsonschema`) and
no network; configs/schema.json asks for the fields of the bundle specification. IMAGES holds .nii.gz and .nii files; .nrrd
and .mha files need ITK too (`pip install itk`). What cannot be read is named and left out, the other cases go on, and the
exit code is then 1. Several channels: name the files CASE_0000.nii.gz, CASE_0001.nii.gz and so on. Intensities and
grid are computed as in the training (scripts/), results lie on the grid of the source image.

The scripts and the configuration are part of MedSSL (Apache-2.0). Whether the weights may be passed on depends on the
data that they were trained on.

{card}"""


def as_dynunet(network: SegmentationNet) -> tuple[dict[str, Any], DynUNet] | None:
    """The same network as MONAI's DynUNet: its arguments and the module.

    None where DynUNet cannot be it.

    DynUNet has at least three levels and one normalisation for all of them, which group
    normalisation, whose groups follow the channels, is not.
    """
    encoder = network.encoder
    levels = len(encoder.strides)
    if encoder.norm == "group" or levels < 3:
        return None
    arguments = {
        "spatial_dims": encoder.dim,
        "in_channels": encoder.in_channels,
        "out_channels": network.head.out_channels,
        "kernel_size": [3] * levels,
        "strides": [list(s) for s in encoder.strides],
        "upsample_kernel_size": [list(s) for s in encoder.strides[1:]],
        "filters": list(encoder.widths),
        "norm_name": [encoder.norm, {"affine": True}],
        "res_block": True,
    }
    theirs = DynUNet(**arguments)
    parts = (theirs.input_block, *theirs.downsamples, theirs.bottleneck)
    for mine, part in zip(encoder.stages, parts, strict=True):
        part.load_state_dict(mine.state_dict())
    for mine, part in zip(network.decoder.stages, theirs.upsamples, strict=True):
        part.load_state_dict(mine.state_dict())
    theirs.output_block.conv.conv.load_state_dict(network.head.state_dict())
    return arguments, theirs.eval()


def write_bundle(model: Model, out: Path, name: str, card: str, traced: Path | None) -> Path:
    """Write the bundle as a new folder, whole or not at all; returns it.

    Args:
        model: the trained model.
        out: the folder to make.
        name: of the run.
        card: its model card.
        traced: the network's logits as TorchScript, where DynUNet cannot be the network.

    Raises:
        InputError: the folder exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("exists already", file=out, remedy="Give the name of a new folder")
    with atomic_folder(out) as work:
        for part in ("configs", "models", "scripts", "docs"):
            (work / part).mkdir()
        _fill(work, model, name, card, traced)
    return out


def _fill(folder: Path, model: Model, name: str, card: str, traced: Path | None) -> None:
    found = as_dynunet(model.network)
    if found is not None:
        # the state dictionary that the bundle specification asks for: tensors only, read with
        # weights_only=True
        buffer = BytesIO()  # a full disk is no system error to torch's own writer
        torch.save(found[1].state_dict(), buffer)
        (folder / "models" / "model.pt").write_bytes(buffer.getvalue())
    elif traced is not None:
        shutil.copyfile(traced, folder / "models" / "model.ts")
    facts = metadata(model, name)
    write_json(folder / "configs" / "metadata.json", facts)
    write_json(folder / "configs" / "schema.json", schema())
    write_json(
        folder / "configs" / "inference.json", inference_config(model, found[0] if found else None)
    )
    (folder / "scripts" / "__init__.py").write_text("", encoding="utf-8")
    (folder / "scripts" / "medssl.py").write_text(scripts_text(), encoding="utf-8")
    text = _README.format(name=name, description=facts["description"], card=_without_title(card))
    (folder / "docs" / "README.md").write_text(text, encoding="utf-8")


def _without_title(card: str) -> str:
    """A model card as part of a page that has the run's name as its title already."""
    title, _, rest = card.partition("\n")
    return rest.lstrip("\n") if title.startswith("# ") else card


def scripts_text() -> str:
    """The bundle's script: ``monai_bundle_scripts.py`` with its imports written out."""
    lines = inspect.getsource(monai_bundle_scripts).splitlines()
    ours = [number for number, line in enumerate(lines) if line.startswith("from MedSSLLib")]
    written = []
    for module, names in _CONSTANTS.items():
        written += [f"{name} = {getattr(module, name)!r}" for name in names]
    written += _STAND_INS
    for function in _WRITTEN_OUT:
        written += ["", "", *inspect.getsource(function).splitlines()]
    lines[ours[0] : ours[-1] + 1] = [*written, "", ""]
    return "\n".join(lines) + "\n"


def inference_config(model: Model, dynunet: dict[str, Any] | None) -> dict[str, Any]:
    """``sliding_window.json``: MONAI's transforms and inferers with the plan's numbers."""
    plan = model.plan
    weights = "model.ts" if dynunet is None else "model.pt"
    load = (
        "$@network_def.load_state_dict("
        "torch.load(@checkpoint, map_location=@device, weights_only=True))"
    )
    traced = {"_target_": "torch.jit.load", "f": "@checkpoint", "map_location": "@device"}
    return {
        "imports": ["$import torch", "$import scripts.medssl as medssl"],
        "bundle_root": ".",
        "dataset_dir": "images",
        "output_dir": "$@bundle_root + '/eval'",
        "checkpoint": f"$@bundle_root + '/models/{weights}'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": traced if dynunet is None else {"_target_": "DynUNet", **dynunet},
        "network": "$@network_def.to(@device)",
        "datalist": f"$medssl.find_cases(@dataset_dir, {plan.channels})",
        "preprocessing": {"_target_": "Compose", "transforms": _before(model)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "inferer": _inferer(model),
        "postprocessing": {"_target_": "Compose", "transforms": _after(model)},
        "run": [
            *([] if dynunet is None else [load]),
            "$medssl.segment(@dataset, @network, @inferer, @postprocessing, @device)",
        ],
    }


def _before(model: Model) -> list[dict[str, Any]]:
    plan = model.plan
    steps = [1] * (3 - plan.dim) + np.prod(plan.strides, axis=0).tolist()
    return [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "CopyItemsd", "keys": "image", "names": "source"},
        {
            "_target_": "scripts.medssl.PlanGridd",
            "keys": "image",
            "spacing": list(plan.spacing),
            "slice_axis": plan.slice_axis,
            "modality": list(plan.modality),
            "intensities": plan.intensities,
        },
        {"_target_": "DivisiblePadd", "keys": "image", "k": steps, "method": "end", "mode": "edge"},
    ]


def _inferer(model: Model) -> dict[str, Any]:
    plan = model.plan
    if plan.dim == 2:
        return {
            "_target_": "SliceInferer",
            "roi_size": [-1, -1],
            "spatial_dim": 0,
            "sw_batch_size": 4,
        }
    return {
        "_target_": "scripts.medssl.TiledInferer",
        "patch": list(plan.patch),
        "voxels": sliding_window.TILE_VOXELS[3],
        "overlap": sliding_window.OVERLAP,
    }


def _after(model: Model) -> list[dict[str, Any]]:
    return [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {
            "_target_": "ResampleToMatchd",
            "keys": "pred",
            "key_dst": "source",
            "mode": "bilinear",
            "padding_mode": "border",
        },
        {
            "_target_": "scripts.medssl.ClassMapd",
            "keys": "pred",
            "single": sorted({*model.single_component, *model.connected_on_slices}),
            "connected": model.single_foreground,
        },
        {
            "_target_": "MapLabelValued",
            "keys": "pred",
            "orig_labels": list(range(len(model.values))),
            "target_labels": list(model.values),
            "dtype": "$torch.int64",  # the default, float32, is exact up to 16,777,216 only
        },
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "",
            "output_ext": ".nii.gz",
            "writer": "$medssl.LabelWriter",
            "output_dtype": np.dtype(label_type(model.values)).name,
            "separate_folder": False,
            "resample": False,
        },
    ]


class Probabilities(nn.Module):
    """Class probabilities of preprocessed, padded images: what leaves as TorchScript and ONNX."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """``[b, c, *s]`` to ``[b, k, *s]``."""
        return self.network(image).softmax(1)
