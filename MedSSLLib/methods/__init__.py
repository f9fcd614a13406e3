"""Pre-training methods by name. Adding one: a file here, a line in METHODS, a test file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from MedSSLLib.core.errors import InputError

if TYPE_CHECKING:
    from MedSSLLib.methods.base import Method


METHODS = {
    "pgl": "MedSSLLib.methods.pgl:PGL",
    "gcl": "MedSSLLib.methods.gcl:GCL",
    "byol": "MedSSLLib.methods.byol:BYOL",
    "simclr": "MedSSLLib.methods.simclr:SimCLR",
    "restoration": "MedSSLLib.methods.restoration:Restoration",
}


def load_method(name: str) -> type[Method]:
    """The method's class, imported on demand.

    Raises:
        InputError: no such method.
    """
    if name not in METHODS:
        raise InputError(
            f"method {name!r} does not exist", remedy=f"Use one of {', '.join(METHODS)}"
        )
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)
