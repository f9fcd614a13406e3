"""What a MONAI bundle runs beside MONAI's own transforms.

The grid and the intensities of the training.

A copy of this file lies in every bundle, with the functions imported from MedSSLLib below written
out, so that a bundle needs MONAI, nibabel and scipy only and yet computes what ``medssl predict``
computes.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, MetaTensor, NibabelWriter
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import MapTransform, Orientation

from MedSSLLib.data.preprocessing.normalisation import normalise
from MedSSLLib.data.preprocessing.resampling import _matrix, cubic, resample_separably
from MedSSLLib.images.components import class_map
from MedSSLLib.inference.sliding_window import tile_size

AXES = ("LSP", "PSL", "SPL")  # directions of d, h, w for a slice axis along L, P, S
_READ_BY = {".nrrd": ("itk", "nrrd"), ".mha": ("itk",)}  # packages by which MONAI reads them


class PlanGridd(MapTransform):
    """Image ``[c, i, j, k]`` to ``[c, d, h, w]`` on the training grid.

    Intensities are normalised, the affine is kept true.

    Args:
        keys: images to change.
        spacing: grid spacing d, h, w in mm; None keeps the image's own.
        slice_axis: what d is: 0 = L, 1 = P, 2 = S, or 'own' for the axis with the largest spacing.
        modality: one name per channel; 'CT' has a fixed scale.
        intensities: the rule of the training by which they are normalised.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        spacing: Sequence[float | None],
        slice_axis: int | str,
        modality: Sequence[str],
        intensities: int,
    ) -> None:
        super().__init__(keys)
        self.spacing, self.slice_axis, self.modality = spacing, slice_axis, modality
        self.intensities = intensities

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            changed[key] = self._on_grid(changed[key])
        return changed

    def _on_grid(self, image: MetaTensor) -> MetaTensor:
        axis = self.slice_axis
        if axis == "own":
            axis = _own_axis(np.asarray(image.affine))
        image = Orientation(AXES[int(axis)], labels=(("L", "R"), ("P", "A"), ("I", "S")))(image)
        affine = np.asarray(image.affine, float).copy()
        operators: list[np.ndarray | None] = []
        for number, (n, step) in enumerate(zip(image.shape[1:], self.spacing, strict=True)):
            own = float(np.linalg.norm(affine[:3, number]))
            if step is None or abs(own / step - 1) < 1e-3:  # this axis stays as it is
                operators.append(None)
                continue
            ratio = step / own
            size = max(1, math.ceil(n / ratio - 1e-3))
            start = (n - 1) / 2 - (size - 1) / 2 * ratio
            operators.append(_matrix(start + ratio * np.arange(size), n, ratio, cubic))
            affine[:3, 3] += start * affine[:3, number]
            affine[:3, number] *= ratio
        arrays = []
        for channel, modality in zip(image, self.modality, strict=True):
            normal = normalise(np.asarray(channel), modality, self.intensities)
            arrays.append(resample_separably(normal, operators))
        tensor = torch.from_numpy(np.ascontiguousarray(np.stack(arrays)))
        return _with_affine(tensor, affine, image.meta)


def _with_affine(tensor: torch.Tensor, affine: np.ndarray, meta: Mapping[str, Any]) -> MetaTensor:
    facts = {key: value for key, value in meta.items() if key != "affine"}
    return MetaTensor(tensor, affine=torch.from_numpy(affine), meta=facts)


def _own_axis(affine: np.ndarray) -> int:
    """The anatomical axis (0 L, 1 P, 2 S) of the voxel axis with the largest spacing.

    In a tie, the last one.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    largest = np.flatnonzero(spacing >= spacing.max() * 0.999)
    own = largest[0] if len(largest) == 1 else 2
    direction = np.abs(affine[:3, :3] / spacing)

    def agreement(rows: tuple[int, ...]) -> float:
        return float(direction[list(rows), [0, 1, 2]].sum())

    return max(permutations(range(3)), key=agreement)[own]


class ClassMapd(MapTransform):
    """Probabilities ``[c, i, j, k]`` to the most probable classes ``[1, i, j, k]``.

    In the pieces that are kept.

    Args:
        keys: probabilities to change.
        single: classes that keep their surest piece and those nearly as sure.
        connected: whether the whole foreground first keeps its richest component.
    """

    def __init__(
        self, keys: Sequence[str] | str, single: Sequence[int], connected: bool = False
    ) -> None:
        super().__init__(keys)
        self.single, self.connected = tuple(single), connected

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            likely = changed[key]
            classes = class_map(np.asarray(likely), self.single, connected=self.connected)
            changed[key] = _with_affine(
                torch.from_numpy(classes)[None], np.asarray(likely.affine), likely.meta
            )
        return changed


class TiledInferer(Inferer):
    """The whole volume where it fits, else overlapping tiles.

    Tiles are the patch times whole numbers.

    Args:
        patch: patch of the training.
        voxels: largest volume of one forward pass.
        overlap: fraction of a tile shared with its neighbour.
    """

    def __init__(self, patch: Sequence[int], voxels: int, overlap: float) -> None:
        super().__init__()
        self.patch, self.voxels, self.overlap = patch, voxels, overlap

    def __call__(self, inputs: Any, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        size = tuple(inputs.shape[2:])
        if np.prod(size) <= self.voxels:
            return network(inputs, *args, **kwargs)
        tile = tile_size(size, self.patch, self.voxels)
        return SlidingWindowInferer(tile, 1, self.overlap, mode="gaussian")(
            inputs, network, *args, **kwargs
        )


class LabelWriter(NibabelWriter):
    """Label maps value for value: MONAI's writers pass them through float32, which is exact up to
    16,777,216 only.
    """

    def set_metadata(
        self, meta_dict: Mapping[str, Any] | None = None, resample: bool = False, **options: Any
    ) -> None:
        """Where the label map lies; it is not resampled."""
        _, self.affine, _ = self.get_meta_info(meta_dict)


def find_cases(folder: str, channels: int) -> list[dict[str, Any]]:
    """Images of a folder for MONAI's datasets, with the number of files that each must have.

    Several channels are files named CASE_0000, CASE_0001 and so on.
    """
    cases: dict[str, list[str]] = {}
    for path in sorted(Path(folder).iterdir()):
        name, found = re.subn(r"\.(nii|nii\.gz|nrrd|mha)$", "", path.name)
        if found:
            name = name if channels == 1 else re.sub(r"_\d{4}$", "", name)
            cases.setdefault(name, []).append(str(path))
    return [{"image": paths, "channels": channels} for paths in cases.values()]


@torch.inference_mode()
def segment(
    dataset: Dataset,
    network: torch.nn.Module,
    inferer: Inferer,
    postprocessing: Callable[[dict[str, Any]], Any],
    device: torch.device,
) -> list[Any]:
    """Segment every case of a dataset; returns what the post-processing returns.

    Cases that cannot be read are named and left out; then SystemExit, which says how many, ends the
    program with exit code 1.
    """
    network.eval()
    done = []
    for index in range(len(dataset)):
        case = _loaded(dataset, index)
        if case is None:
            continue
        image = case["image"]
        logits = inferer(image[None].to(device), network)[0].float().cpu()
        prediction = _with_affine(logits, np.asarray(image.affine), case["source"].meta)
        done.append(postprocessing({**case, "pred": prediction}))
    if len(done) < len(dataset):
        raise SystemExit(f"{len(dataset) - len(done)} of {len(dataset)} cases not segmented")
    return done


def _loaded(dataset: Dataset, index: int) -> dict[str, Any] | None:
    """A case, read and on the training grid; None, and why on stderr, where that cannot be."""
    files, channels = dataset.data[index]["image"], dataset.data[index]["channels"]
    names = ", ".join(Path(file).name for file in files)
    if len(files) != channels:
        why = f"{len(files)} files of one case, expected {channels}. Rename or add files"
    elif not all(_has_reader(file) for file in files):
        why = "nothing that is installed reads this format. Install ITK: pip install itk"
    else:
        try:
            return dict(dataset[index])
        except Exception as error:  # readers raise what they like
            cause: BaseException = error
            while cause.__cause__ is not None:  # of a transform, within MONAI's own words
                cause = cause.__cause__
            why = f"cannot be read: {str(cause).strip() or type(cause).__name__}"
    print(f"not segmented: {names}: {why}", file=sys.stderr, flush=True)
    return None


def _has_reader(file: str) -> bool:
    packages = _READ_BY.get(Path(file).suffix, ())
    return not packages or any(find_spec(package) for package in packages)
