"""A finished run for other programs: MONAI bundle, TorchScript, ONNX.

The plan goes with it as metadata.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import atomic_path, refuse_overwriting
from MedSSLLib.core.packages import missing
from MedSSLLib.inference.model import Model, load_model
from MedSSLLib.interop.monai_bundle import Probabilities, as_dynunet, write_bundle
from MedSSLLib.interop.monai_metadata import plan_facts
from MedSSLLib.project.project import Project

METADATA = "medssl.json"
"""Where a TorchScript file keeps the plan (``_extra_files``); ONNX has it in ``metadata_props``
under ``medssl``.
"""
_ONNX_PACKAGES = ("onnx", "onnxscript")


def run_export(project: Project, run: str, kind: str, out: Path, events: Events) -> Path:
    """Export a run's network to a file, or to a folder for a bundle; returns its path.

    TorchScript and ONNX take preprocessed images ``[b, c, *s]``, padded to whole strides, and give
    probabilities.

    Raises:
        InputError: an unusable run, a path that exists as a folder, or a package is missing.
    """
    refuse_overwriting([out], project.files)
    model = load_model(project.run_folder(run), "cpu", "32")
    events.emit("start", command="export", run=run, to=kind)
    if kind == "bundle":
        _export_bundle(model, out, run, project.run_folder(run) / "model_card.md")
    elif out.is_dir():
        raise InputError("is a folder", file=out, remedy="Give a file name")
    else:
        {"torchscript": export_torchscript, "onnx": export_onnx}[kind](model, out)
    events.emit("done", run=run, file=str(out))
    return out


def _export_bundle(model: Model, out: Path, run: str, card: Path) -> None:
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    with tempfile.TemporaryDirectory() as folder:
        traced = None
        if as_dynunet(model.network) is None:
            traced = Path(folder) / "model.ts"
            torch.jit.save(_trace(model.network, model), str(traced))
        write_bundle(model, out, run, text, traced)


def export_torchscript(model: Model, out: Path) -> None:
    """Write probabilities of padded images as TorchScript, the plan inside as ``medssl.json``."""
    buffer = BytesIO()  # a full disk is no system error to torch's own writer
    torch.jit.save(_trace(Probabilities(model.network), model), buffer, {METADATA: _facts(model)})
    with atomic_path(out) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _trace(network: nn.Module, model: Model) -> torch.jit.ScriptModule:
    """A traced network, any batch and any size of whole strides.

    PyTorch calls torch.jit deprecated since 2.13.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(network.eval(), _example(model), check_trace=False)


def export_onnx(model: Model, out: Path) -> None:
    """Write probabilities of padded images as ONNX, sizes free, the plan in ``metadata_props``.

    Raises:
        MedSSLError: onnx or onnxscript is missing; it says how to install them.
    """
    onnx = _onnx()
    dims = [step * torch.export.Dim(f"n{axis}") for axis, step in enumerate(_step(model))]
    shapes: dict[int, Any] = {0: torch.export.Dim("batch"), **dict(enumerate(dims, 2))}
    with warnings.catch_warnings(), torch.no_grad(), _errors_only("torch.onnx"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Probabilities(model.network).eval(),
            (_example(model),),
            dynamo=True,
            verbose=False,
            optimize=True,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_shapes={"image": shapes},
        )
    proto = program.model_proto  # type: ignore[union-attr]
    entry = proto.metadata_props.add()
    entry.key, entry.value = "medssl", _facts(model)
    onnx.checker.check_model(proto)
    with atomic_path(out) as temporary:
        temporary.write_bytes(proto.SerializeToString())


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """Without the warnings that a package logs.

    Such as those of operators of packages that are not needed here.
    """
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _onnx() -> Any:
    import importlib

    try:
        return [importlib.import_module(name) for name in _ONNX_PACKAGES][0]
    except ModuleNotFoundError:
        raise missing(*_ONNX_PACKAGES) from None


def _step(model: Model) -> Sequence[int]:
    step: list[int] = np.prod(model.plan.strides, axis=0).tolist()
    return step


def _example(model: Model) -> torch.Tensor:
    """Two images of two (on the last axis three) total strides.

    So no size is taken for fixed.
    """
    size = [step * (2 + (axis == model.plan.dim - 1)) for axis, step in enumerate(_step(model))]
    return torch.randn(2, model.plan.channels, *size, generator=torch.Generator().manual_seed(0))


def _facts(model: Model) -> str:
    return json.dumps(plan_facts(model))
