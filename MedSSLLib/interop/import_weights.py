"""An encoder from another program's weight file, made a run that fine-tuning can start from.

Files of MONAI's DynUNet with residual blocks, which are this encoder, are taken over by name,
normalisation included. From any other network (BasicUNet, nnU-Net, nnssl) the convolutions are
taken over by shape in order of appearance and the normalisation starts anew. What was learned
between other layers need not be worth much here: measure it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import write_json, write_text
from MedSSLLib.data.plan import Plan, make_plan
from MedSSLLib.networks.unet import Encoder, build_encoder
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.training.checkpoint import TransferReport, load_tensors, save_tensors, transfer
from MedSSLLib.training.model_card import write_model_card
from MedSSLLib.training.planning import readable_headers
from MedSSLLib.training.run_folder import RunFolder, open_run, owned, write_config

SAFE_UNPICKLER = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)
# what nnU-Net and nnssl, Lightning and MONAI keep the weights under
_HOLDERS = ("network_weights", "state_dict", "model_state_dict", "model")
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|net\.|model\.)+")
_ENCODER = re.compile(r"^(encoder|backbone)\.")
_DOWNSAMPLES = re.compile(r"downsamples\.\d+\.conv1\.conv\.weight$")
_NOT_ENCODER = re.compile(
    r"^(decoder|upsamples|skip_layers|output_block|upcat|final_conv|heads?|deep_supervision)"
)


def run_import(
    project: Project,
    file: Path,
    name: str,
    events: Events,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Path, TransferReport]:
    """Make a finished run of the encoder in a weight file.

    Returns its folder and what was taken over.

    Args:
        project: whose images the plan is made for.
        file: safetensors, or a file of torch.save, which is read without running code.
        name: of the run.
        events: where progress goes.
        settings: of the run; network.widths are read off the file where they are not given.

    Raises:
        InputError: the file cannot be read safely, holds no convolution, or nothing fits.
    """
    source = encoder_tensors(read_tensors(file))
    convolutions = [tensor for tensor in source.values() if tensor.dim() > 3]
    if not convolutions:
        raise InputError(
            "holds no convolution of an encoder", file=file, remedy="Give the weights of a U-Net"
        )
    dim = convolutions[0].dim() - 2
    plan = make_plan(
        readable_headers(project.pool),
        modality=project.modalities,
        channels=project.channels,
        dim=f"{dim}d",
    )
    found = {
        "network.widths": widths_of(convolutions, len(plan.strides)),
        "name": name,
        "dim": f"{dim}d",
    }
    if "stages.0.norm1.weight" in source and "stages.0.norm1.running_mean" not in source:
        found["network.norm"] = "instance"
    config = RunConfig.build("pretrain", method="imported", overrides={**found, **(settings or {})})
    encoder = build_encoder(plan.dim, plan.channels, plan.strides, config.network)
    report = take_over(encoder, source)
    folder, config = open_run(project, config)
    with owned(folder):
        events.emit("start", command="import", run=name, file=str(file))
        _write(folder, project, (config, plan), encoder, report, file)
    if len(report.loaded) + len(report.adapted) < len(encoder.state_dict()) / 4:
        events.emit(
            "warning",
            message=f"only {len(report.loaded) + len(report.adapted)} of "
            f"{len(encoder.state_dict())} tensors were found in the file; see transfer.txt",
        )
    events.emit("done", run=name, folder=str(folder), tensors_loaded=len(report.loaded))
    return folder, report


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, in the order of the file.

    Wrappers like ``module.`` are taken off.

    Safetensors files have no order; there the names are sorted, numbers by value.

    Raises:
        InputError: it is missing, damaged, or holds more than tensors and plain values.
    """
    if not file.is_file():
        raise InputError("does not exist", file=file, remedy="Check the path of --from")
    if file.suffix == ".safetensors":
        return _unwrapped(load_tensors(file)[0], ordered=False)  # the format keeps no order
    if not SAFE_UNPICKLER:
        raise InputError(
            f"is no safetensors file, and torch {torch.__version__} does not read others safely "
            "(CVE-2026-24747)",
            file=file,
            remedy="Update torch to 2.10 or newer, or save as safetensors",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on how to load it otherwise
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may raise any kind from deep in torch
        raise InputError(
            f"cannot be read as tensors alone ({_reason(error)})",
            file=file,
            remedy="Save the network's state_dict() with safetensors or torch.save, and import "
            "that",
        ) from None
    tensors = _state_dictionary(content)
    if not tensors:
        raise InputError(
            "holds no state dictionary", file=file, remedy=f"It should be one, or under {_HOLDERS}"
        )
    return _unwrapped(tensors)


def _state_dictionary(content: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, unwrapped; {} where there are none."""
    holder: str | None = ""
    while isinstance(content, dict) and holder is not None:
        holder = next((name for name in _HOLDERS if isinstance(content.get(name), dict)), None)
        if holder is not None:
            content = content[holder]
    if not isinstance(content, dict):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


_ADVICE = re.compile(
    r"weights_only|safe_globals|can still be loaded|trust|Please|torch\.load|file an issue"
    r"|Weights only load failed|Check the documentation"
)
"""Words of sentences in which torch says how to load a file without its protection."""
_KINDS = {"TorchScript": "a TorchScript program", ".tar format": "the tar format of old torch"}


def _reason(error: Exception) -> str:
    """What torch found, without its advice on how to run the code in a file."""
    text = str(error).replace("`", "")
    for word, kind in _KINDS.items():
        if word in text:
            return kind
    found = re.search(r"WeightsUnpickler error: (.+)", text, re.DOTALL)
    sentences = re.split(r"(?<=[.!?])\s+|\n+", found[1] if found else text)
    kept = [words.strip() for words in sentences if words.strip() and not _ADVICE.search(words)]
    return kept[0].rstrip(".")[:200] if kept else type(error).__name__


def _unwrapped(tensors: Mapping[str, Tensor], ordered: bool = True) -> dict[str, Tensor]:
    names = list(tensors) if ordered else sorted(tensors, key=_natural)
    return {_WRAPPERS.sub("", name): tensors[name] for name in names}


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts level 10 behind level 9."""
    key = []
    for part in re.split(r"(\d+)", name):
        key.append((int(part), "") if part.isdigit() else (0, part))
    return key


def encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a network, each tensor once.

    DynUNet's blocks get this library's names.
    """
    marked = {}
    for name, tensor in tensors.items():
        if _ENCODER.match(name):
            marked[_ENCODER.sub("", name)] = tensor
    tensors = marked or tensors
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    last = 1 + sum(bool(_DOWNSAMPLES.match(name)) for name in tensors)
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if _NOT_ENCODER.match(name) or ".all_modules." in name or (tensor.dim() and key in seen):
            continue  # nnU-Net and DynUNet name the same tensor more than once
        seen.add(key)
        name = re.sub(r"^input_block\.", "stages.0.", name)
        name = re.sub(r"^downsamples\.(\d+)\.", lambda match: f"stages.{int(match[1]) + 1}.", name)
        found[re.sub(r"^bottleneck\.", f"stages.{last}.", name)] = tensor
    if all(name in tensors for name in found):
        return found
    return {name: found[name] for name in sorted(found, key=_natural)}


def widths_of(convolutions: Sequence[Tensor], levels: int) -> tuple[int, ...]:
    """Channels per level: the numbers of output channels as they grow.

    At most as many as the plan has levels.
    """
    widths: list[int] = []
    for tensor in convolutions:
        if max(tensor.shape[2:]) > 1 and (not widths or tensor.shape[0] > widths[-1]):
            widths.append(int(tensor.shape[0]))
    return tuple((widths + [widths[-1]] * levels)[:levels])


def take_over(encoder: Encoder, source: Mapping[str, Tensor]) -> TransferReport:
    """Load by name where the names are this library's, else convolutions by shape.

    Those go in order of appearance.

    Raises:
        InputError: not one convolution fits.
    """
    own = encoder.state_dict()
    if any(name in own for name in source):
        return transfer(encoder, source)
    matched = _matched(own, source)
    report = transfer(encoder, {name: source[theirs] for name, theirs in matched.items()})
    kept = {}
    for name in report.kept:
        kept[name] = "not taken from another kind of network"
        if own[name].dim() > 2:
            kept[name] = "no convolution of this shape is left in the file"
    loaded = tuple(f"{name} (from {matched[name]})" for name in report.loaded)
    unused = tuple(name for name in source if name not in matched.values())
    return TransferReport(loaded, report.adapted, kept, unused)


def _matched(own: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> dict[str, str]:
    """Convolution of the encoder to that of the file, by shape in order of appearance."""
    offered = [(name, tensor) for name, tensor in source.items() if tensor.dim() > 2]
    matched: dict[str, str] = {}
    position, first = 0, True
    for name, tensor in own.items():
        if tensor.dim() <= 2:
            continue
        for place in range(position, len(offered)):
            if _fits(offered[place][1], tensor, first=first):
                matched[name], position = offered[place][0], place + 1
                break
        first = False
    return matched


def _fits(theirs: Tensor, mine: Tensor, first: bool) -> bool:
    """The same shape; the first convolution may see another number of image channels."""
    if first and theirs.dim() == mine.dim():
        return theirs.shape[:1] + theirs.shape[2:] == mine.shape[:1] + mine.shape[2:]
    return theirs.shape == mine.shape


def _write(
    folder: Path,
    project: Project,
    made: tuple[RunConfig, Plan],
    encoder: Encoder,
    report: TransferReport,
    file: Path,
) -> None:
    """Everything that a finished pre-training leaves, the weights last."""
    config, plan = made
    lines = [report.text(), *(f"  loaded {name}" for name in report.loaded)]
    write_text(folder / "transfer.txt", "\n".join(lines))
    write_config(
        folder,
        config,
        plan,
        {
            "classes": list(project.classes),
            "values": list(project.values),
            "unlabelled": [],
            "imported": file.name,
        },
    )
    metrics = {
        "steps": 0,
        "seconds": 0.0,
        "imported_from": file.name,
        "tensors_loaded": len(report.loaded),
        "tensors_adapted": len(report.adapted),
        "tensors_new": len(report.kept),
    }
    write_json(folder / "metrics.json", metrics)
    write_model_card(RunFolder(folder), project, metrics)
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_tensors(folder / WEIGHTS, tensors, {"kind": "encoder", "method": "imported"})
