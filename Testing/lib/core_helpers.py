"""What the tests of the core share: cases in memory, a tiny project on disk, a fabric without
devices.
"""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch

from MedSSLLib.config.run import AugmentConfig, RunConfig
from MedSSLLib.core.events import Events
from MedSSLLib.images.labels import IGNORE

if TYPE_CHECKING:
    from MedSSLLib.project.project import Project

torch.set_num_threads(1)
PLAIN = AugmentConfig(
    flip=0,
    affine=0,
    elastic=0,
    noise=0,
    blur=0,
    brightness=0,
    contrast=0,
    gamma=0,
    low_resolution=0,
)


class MemoryReader:
    """A CropReader over arrays, with the cache's rules: edges continue, labels outside are
    IGNORE.
    """

    def __init__(
        self, images: dict[str, np.ndarray], labels: dict[str, np.ndarray] | None = None
    ) -> None:
        self.images, self.labels = images, labels or {}
        self.read: list[tuple[str, tuple, tuple]] = []

    def shape(self, name):
        return self.images[name].shape

    def image(self, name, lo, hi):
        self.read.append((name, tuple(lo), tuple(hi)))
        x = self.images[name]
        index = [
            np.clip(np.arange(a, b), 0, n - 1) for a, b, n in zip(lo, hi, x.shape[1:], strict=True)
        ]
        return np.ascontiguousarray(x[:, index[0]][:, :, index[1]][:, :, :, index[2]])

    def label(self, name, lo, hi):
        x = self.labels[name]
        index = [np.arange(a, b) for a, b in zip(lo, hi, strict=True)]
        d, h, w = [(i >= 0) & (i < n) for i, n in zip(index, x.shape, strict=True)]
        out = x[np.ix_(*[np.clip(i, 0, n - 1) for i, n in zip(index, x.shape, strict=True)])]
        return np.where(d[:, None, None] & h[:, None] & w, out, IGNORE).astype(np.uint8)

    def foreground(self, name):
        label = self.labels[name]
        return {
            int(c): np.argwhere(label == c).astype(np.int32)
            for c in np.unique(label[label != IGNORE])
        }

    def counts(self, name):
        label = self.labels[name]
        values, counts = np.unique(label[label != IGNORE], return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))


class Record:
    """A sink that keeps events."""

    def __init__(self):
        self.events = []

    def write(self, event):
        self.events.append(event)

    def close(self):
        pass

    def of(self, kind):
        return [event for event in self.events if event["event"] == kind]


def lone_fabric(device="cpu"):
    """What the trainer asks of Fabric, for one process on any device, the meta device included."""
    return SimpleNamespace(
        world_size=1,
        global_rank=0,
        is_global_zero=True,
        device=torch.device(device),
        autocast=nullcontext,
        broadcast=lambda x: x,
        _precision=SimpleNamespace(precision="32-true"),
    )


def loud() -> tuple[Events, Record]:
    """Events that pass every progress event, and what they were."""
    record = Record()
    return Events([record], min_interval=0.0), record


def write_case(
    folder: Path, name: str, seed: int, shape=(12, 20, 20), spacing=(1.0, 1.0, 1.0)
) -> None:
    """A noisy image [k, j, i] with a bright ellipsoid of label 1, as imagesTr and labelsTr."""
    import SimpleITK as sitk  # not at the top: Testing/gpu uses this file where there is none

    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    centre = np.asarray(shape) * rng.uniform(0.4, 0.6, 3)
    label = (((grid - centre) / (np.asarray(shape) * 0.28)) ** 2).sum(-1) < 1
    image = rng.normal(100, 10, shape) + 60 * label
    for part, array in (
        ("imagesTr", image.astype(np.float32)),
        ("labelsTr", label.astype(np.uint8)),
    ):
        (folder / part).mkdir(parents=True, exist_ok=True)
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing(spacing)
        sitk.WriteImage(volume, str(folder / part / f"{name}.nii.gz"))


def tiny_project(folder: Path, cases: int = 4, **options) -> "Project":
    """A project of ellipsoids in noise."""
    from MedSSLLib.project.project import Project

    for index in range(cases):
        write_case(folder / "data", f"case{index}", index, **options)
    return Project.create(
        folder / "project", folder / "data" / "imagesTr", labels=folder / "data" / "labelsTr"
    )


def tiny_config(command="finetune", **overrides) -> RunConfig:
    """A run of seconds; keyword names use two underscores for a dot."""
    values = {
        "network.widths": (4, 8),
        "training.steps": 6,
        "training.batch": 2,
        "training.voxels": 512,
        "device": "cpu",
        "dim": "3d",
    }
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    method, preset = values.pop("method", "supervised"), values.pop("preset", "standard")
    return RunConfig.build(command, method=method, preset=preset, overrides=values)
