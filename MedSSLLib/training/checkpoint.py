"""Weights and checkpoints: one safetensors file each, replaced whole; transfer with a report."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from MedSSLLib.core.errors import InputError, printable
from MedSSLLib.core.files import atomic_path

_FORMAT, _FORMAT_VERSION = "medssl-tensors", 1


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON `facts` as one safetensors file, whole or not at all."""
    header = {"format": _FORMAT, "format_version": str(_FORMAT_VERSION), "facts": json.dumps(facts)}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(copies, str(temporary), metadata=header)
        except SafetensorError as error:  # has the system's error number in its text alone
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file written by :func:`save_tensors`.

    Any other safetensors file has no facts.

    Raises:
        InputError: the file is missing, damaged or written by a newer version.
    """
    try:
        with safe_open(str(path), framework="pt", device=device) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            version = int(header.get("format_version", _FORMAT_VERSION))
            facts = json.loads(header.get("facts", "{}"))
        if not isinstance(facts, dict):
            raise ValueError("its facts are no object")
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError(
            f"cannot be read as safetensors ({error})",
            file=str(path),
            remedy="Choose a weights.safetensors file, or run the training again",
        ) from None
    if version > _FORMAT_VERSION:
        raise InputError(
            "was written by a newer version of MedSSL", file=str(path), remedy="Update MedSSL"
        )
    return tensors, facts


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Put back what a checkpoint holds.

    Raises InputError when it is not one of what is put back.
    """
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        first = str(error).split("\n")[0]
        raise InputError(
            f"is damaged or belongs to another run ({type(error).__name__}: {first})",
            file=str(path),
            remedy="Restore it from a backup, or start a new run without --resume",
        ) from error


def flatten_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as ``{index}.{entry}`` tensors."""
    flat = {}
    for index, entry in optimiser.state_dict()["state"].items():
        for key, value in entry.items():
            flat[f"{index}.{key}"] = torch.as_tensor(value)
    return flat


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`flatten_optimiser` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names with ``prefix.`` in front."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under ``prefix.``, without it."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            found[name.removeprefix(f"{prefix}.")] = tensor
    return found


@dataclass(frozen=True)
class TransferReport:
    """What a weight transfer loaded and what it left, with reasons."""

    loaded: tuple[str, ...]
    adapted: dict[str, str]
    kept: dict[str, str]
    unused: tuple[str, ...]

    def text(self) -> str:
        """The report for people, a line per finding."""
        lines = [
            f"{len(self.loaded)} tensors loaded, {len(self.adapted)} adapted, "
            f"{len(self.kept)} newly initialised, {len(self.unused)} in the file not used."
        ]
        lines += [f"  adapted {name}: {why}" for name, why in self.adapted.items()]
        lines += [f"  new {name}: {why}" for name, why in self.kept.items()]
        return "\n".join(lines + [f"  unused {printable(name)}" for name in self.unused])


def transfer(module: nn.Module, source: Mapping[str, Tensor]) -> TransferReport:
    """Load every tensor of `source` that fits `module` by name and shape; say what did not.

    A first convolution with another number of input channels takes the mean over the source's
    channels, scaled so that the sum over channels stays the same.

    Raises:
        InputError: not one convolution fits. (Vectors of normalisation layers may fit by chance.)
    """
    loaded, adapted, kept, state = [], {}, {}, {}
    channels = getattr(module, "in_channels", None)
    for name, target in module.state_dict().items():
        if name not in source:
            kept[name] = "not in the file"
        elif source[name].shape == target.shape:
            state[name] = source[name].to(target.dtype)
            loaded.append(name)
        elif target.shape[1:2] == (channels,) and _same_but_channels(source[name], target):
            state[name] = _spread_channels(source[name], target).to(target.dtype)
            adapted[name] = f"{source[name].shape[1]} input channels spread over {target.shape[1]}"
        else:
            theirs, own = tuple(source[name].shape), tuple(target.shape)
            kept[name] = f"shape {theirs} in the file, {own} here"
    if all(tensor.dim() < 2 for tensor in state.values()):
        raise InputError(
            "no convolution of the weight file fits this network",
            remedy="Use weights pre-trained with the same dimension (2D or 3D) and network widths",
        )
    module.load_state_dict(state, strict=False)
    unused = tuple(name for name in source if name not in state and name not in kept)
    return TransferReport(tuple(loaded), adapted, kept, unused)


def _same_but_channels(source: Tensor, target: Tensor) -> bool:
    if target.dim() < 3:
        return False
    return source.shape[:1] + source.shape[2:] == target.shape[:1] + target.shape[2:]


def _spread_channels(source: Tensor, target: Tensor) -> Tensor:
    mean = source.mean(1, keepdim=True) * source.shape[1] / target.shape[1]
    return mean.expand_as(target).clone()


def save_stage(run_folder: Path, name: str, network: nn.Module, metrics: Mapping[str, Any]) -> None:
    """Keep what a finished stage of a run has reached."""
    facts = {"stage": name, "figures": metrics}
    save_tensors(_stage_file(run_folder, name), network.state_dict(), facts)


def load_stage(run_folder: Path, name: str, network: nn.Module) -> dict[str, Any] | None:
    """Load a finished stage into the network.

    Returns:
        Its metrics, None where it is not finished.

    Raises:
        InputError: the file is not readable, or of another network.
    """
    path = _stage_file(run_folder, name)
    if not path.exists():
        return None
    tensors, facts = load_tensors(path)
    with restoring(path):
        network.load_state_dict(tensors)
    return dict(facts["figures"])


def _stage_file(run_folder: Path, name: str) -> Path:
    return run_folder / "stages" / f"{name}.safetensors"
