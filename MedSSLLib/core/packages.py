"""Packages that MedSSL uses, and the one command that installs what is missing.

Needs the standard library only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from MedSSLLib.core.errors import MedSSLError

REQUIRED = {
    "blosc2": "3.0",
    "lightning-fabric": "2.4",
    "matplotlib": "3.8",
    "monai": "1.6",
    "numpy": "1.26",
    "psutil": "5.9",
    "pydantic": "2.7",
    "pydicom": "3.0",
    "rich": "13.7",
    "safetensors": "0.4.3",
    "scipy": "1.11",
    "SimpleITK": "2.3",
    "torch": "2.8",
}
OPTIONAL = {
    "nilearn": ("0.11", "the demo"),
    "onnx": ("1.17", "export to ONNX"),
    "onnxscript": ("0.5", "export to ONNX"),
    "tensorboard": ("2.16", "--tensorboard"),
}
"""Package to the least version and what needs it."""


def install_command(*requirements: str) -> str:
    """The command that installs packages into the Python that runs now."""
    quoted = " ".join(f'"{text}"' for text in requirements)
    return f'"{python_program()}" -m pip install {quoted}'


def python_program(executable: str | None = None) -> str:
    """The program that starts this Python; of 3D Slicer's the launcher, which finds its libraries.

    Args:
        executable: what runs; by default this Python.
    """
    path = Path(executable or sys.executable or "python3")
    launcher = path.with_name("PythonSlicer" + path.suffix)
    if path.stem == "python-real" and launcher.exists():
        return str(launcher)
    return str(path)


def missing(*names: str) -> MedSSLError:
    """The error for optional packages that a command needs and this Python lacks."""
    purpose = OPTIONAL[names[0]][1]
    wanted = [f"{name}>={OPTIONAL[name][0]}" for name in names]
    return MedSSLError(
        f"The package {names[0]} is missing, which {purpose} needs. Install it: "
        f"{install_command(*wanted)}"
    )
