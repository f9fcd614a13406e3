"""A plain MONAI script as a peer, in the manner of MONAI's tutorials on 3D segmentation.

    python Testing/bench/peers/monai_dynunet.py --data DIR --labelled 8:0 --minutes 10 --threads 1
    --out OUT

DynUNet with kernels and strides from the spacing (as in the DynUNet tutorial), dictionary
transforms in a CacheDataset, crops balanced between foreground and background, Dice and
cross-entropy, sliding window, Invertd back to the source grid. AdamW at 1e-3 with polynomial decay
over the time: the tutorials' rates are meant for days. It runs in MedSSL's own environment, which
has MONAI; nothing of MedSSL takes part in training or prediction.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import monai
import monai.transforms as mt
import numpy as np
import peer
import torch
from monai.data import CacheDataset, DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet

KEYS = ("image", "label")
MOST = 96  # voxels of a patch's side


def work(job: peer.Job, args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(job.threads)
    monai.utils.set_determinism(0)
    folder = job.out / "data"
    job.write_data(folder)
    training = [
        {
            "image": str(folder / "train" / f"{name}.nii.gz"),
            "label": str(folder / "train-labels" / f"{name}.nii.gz"),
        }
        for name in job.labelled
    ]
    spacing, extent = grid_of(training)
    kernels, strides = kernels_and_strides(extent, spacing)
    patch = patch_of(extent, strides)
    prepare = preparation(KEYS, spacing, "CT" in job.project.modalities)
    net = DynUNet(
        3, 1, len(job.project.classes), kernels, strides, strides[1:], norm_name="instance"
    )
    data = CacheDataset(
        training, mt.Compose([*prepare, *augmentation(patch)]), num_workers=0, progress=False
    )
    steps, seconds = train(
        net, DataLoader(data, batch_size=args.batch, shuffle=True), 60 * job.minutes
    )
    begin = time.monotonic()
    before = mt.Compose(preparation(("image",), spacing, "CT" in job.project.modalities))
    for case in job.project.test:
        classes = predict(net, before, folder / "test" / f"{case.name}.nii.gz", patch)
        job.write_prediction(case.name, classes.transpose(2, 1, 0))
    return {
        "steps": steps,
        "training_s": round(seconds, 1),
        "predict_s": round(time.monotonic() - begin, 1),
        "patch": list(patch),
        "batch": 2 * args.batch,
        "threads": job.threads,
        "monai": monai.__version__,
    }


def grid_of(training: list[dict[str, str]]) -> tuple[tuple[float, ...], np.ndarray]:
    """Median spacing of the labelled volumes, oriented, and their median extent on that grid."""
    load = mt.Compose(
        [
            mt.LoadImaged(KEYS),
            mt.EnsureChannelFirstd(KEYS),
            mt.Orientationd(KEYS, "RAS", labels=None),
        ]
    )
    images = [load(files)["image"] for files in training]
    steps = np.array([image.pixdim.numpy() for image in images])
    spacing = np.median(steps, axis=0)
    shapes = np.array([image.shape[1:] for image in images])
    return tuple(spacing.tolist()), np.median(shapes * steps / spacing, axis=0)


def kernels_and_strides(extent: np.ndarray, spacing: tuple[float, ...]) -> tuple[list, list]:
    """Halve an axis while its spacing is within twice the finest and it keeps 4 voxels or more
    (DynUNet tutorial).
    """
    sizes, steps = np.minimum(extent, MOST), np.array(spacing)
    strides, kernels = [], []
    while True:
        halved = (steps / steps.min() <= 2) & (sizes >= 8)
        stride = [2 if yes else 1 for yes in halved]
        if not halved.any() or len(strides) >= 4:
            break
        kernels.append([3 if ratio <= 2 else 1 for ratio in steps / steps.min()])
        strides.append(stride)
        sizes, steps = sizes / stride, steps * stride
    kernels.append([3, 3, 3])
    return kernels, [[1, 1, 1], *strides]


def patch_of(extent: np.ndarray, strides: list) -> tuple[int, ...]:
    """The median extent up to MOST, in whole multiples of the strides."""
    total = np.prod(strides, axis=0)
    return tuple(int(n) for n in np.maximum(np.round(np.minimum(extent, MOST) / total), 1) * total)


def preparation(keys: tuple[str, ...], spacing: tuple[float, ...], ct: bool) -> list:
    """Load, orient, resample, normalise."""
    modes = ("bilinear", "nearest")[: len(keys)]
    scale = (
        mt.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True)
        if ct
        else (mt.NormalizeIntensityd("image", channel_wise=True))
    )
    return [
        mt.LoadImaged(keys),
        mt.EnsureChannelFirstd(keys),
        mt.Orientationd(keys, "RAS", labels=None),
        mt.Spacingd(keys, spacing, mode=modes),
        scale,
    ]


def augmentation(patch: tuple[int, ...]) -> list:
    """Random crops, flips and intensity, with the tutorial's probabilities."""
    return [
        mt.SpatialPadd(KEYS, patch),
        mt.RandCropByPosNegLabeld(KEYS, "label", patch, pos=2, neg=1, num_samples=2),
        mt.RandZoomd(
            KEYS,
            prob=0.15,
            min_zoom=0.9,
            max_zoom=1.2,
            mode=("trilinear", "nearest"),
            align_corners=(True, None),
        ),
        mt.RandGaussianNoised("image", prob=0.15, std=0.01),
        mt.RandGaussianSmoothd(
            "image", prob=0.15, sigma_x=(0.5, 1.15), sigma_y=(0.5, 1.15), sigma_z=(0.5, 1.15)
        ),
        mt.RandScaleIntensityd("image", prob=0.15, factors=0.3),
        *(mt.RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)),
    ]


def train(net: torch.nn.Module, loader: DataLoader, limit: float) -> tuple[int, float]:
    """Steps and seconds; the rate falls to zero at the limit."""
    loss_of, optimiser = (
        DiceCELoss(to_onehot_y=True, softmax=True),
        torch.optim.AdamW(net.parameters(), 1e-3),
    )
    net.train()
    begin, steps = time.monotonic(), 0
    while True:
        for batch in loader:
            used = (time.monotonic() - begin) / limit
            if used >= 1:
                return steps, time.monotonic() - begin
            optimiser.param_groups[0]["lr"] = 1e-3 * (1 - used) ** 0.9
            optimiser.zero_grad()
            loss = loss_of(net(batch["image"].as_tensor()), batch["label"].as_tensor())
            loss.backward()
            optimiser.step()
            steps += 1


@torch.no_grad()
def predict(
    net: torch.nn.Module, before: mt.Compose, path: Path, patch: tuple[int, ...]
) -> np.ndarray:
    """Class indices ``[i, j, k]`` on the grid of the file."""
    net.eval()
    data = before({"image": str(path)})
    logits = sliding_window_inference(
        data["image"][None], patch, 2, net, overlap=0.5, mode="gaussian"
    )[0]
    data["pred"] = torch.softmax(logits, 0)
    back = mt.Invertd("pred", before, "image", nearest_interp=False)
    return back(data)["pred"].argmax(0).numpy().astype(int)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="volumes a step; two crops of each (default: 1)"
    )
    sys.exit(peer.run("MONAI", work, parser))
