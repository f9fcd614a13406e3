"""Kind 10: what is said of files that are refused, and how commands end then."""

from __future__ import annotations

import io as streams
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MedSSLLib.core.errors import InputError
from MedSSLLib.interop.import_weights import read_tensors
from Testing.lib.fidelity.registry import REFUSED, Check, variant

KIND = "10 refusals"


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("pickle", "storages", "tensors", "sys_info"):
            content = pickle.dumps(1)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, streams.BytesIO(content))


MAKERS: dict[str, Callable[[Path], Any]] = {
    "code to run": lambda path: torch.save({"a": _Code()}, path),
    "code to run, old format": lambda path: torch.save(
        {"a": _Code()}, path, _use_new_zipfile_serialization=False
    ),
    "a whole network": lambda path: torch.save(torch.nn.Linear(2, 2), path),
    "a TorchScript program": lambda path: torch.jit.save(
        torch.jit.script(torch.nn.Linear(2, 2)), path
    ),
    "numbers of NumPy": lambda path: torch.save({"a": np.float64(1)}, path),
    "a pickle of Python": lambda path: path.write_bytes(pickle.dumps({"a": _Code()}, 4)),
    "the tar format": _tar,
    "no bytes": lambda path: path.touch(),
    "random bytes": lambda path: path.write_bytes(
        np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8).tobytes()
    ),
}


def advice(make: Callable[[Path], Any]) -> Check:
    """The refusal says what is wrong, and not how to run the code of the file."""

    def check(folder: Path) -> str | None:
        make(folder / "weights.pt")
        try:
            read_tensors(folder / "weights.pt")
        except InputError as error:
            for words in ("weights_only", "trust", "safe_globals", "torch.load"):
                assert words not in str(error), f"says {words}: {error}"
            raise
        return None

    return check


for name, maker in MAKERS.items():
    variant(KIND, f"import: {name}", REFUSED)(advice(maker))
