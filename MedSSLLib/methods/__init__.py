"""Pre-training methods by name: those of this package, of other packages, and of files that were
named.

A method is one file: frozen settings with their presets, pure losses, an ``nn.Module``. One of your
own needs no change here: see :mod:`MedSSLLib.methods.outside`.
"""

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
"""The methods of this package."""


def known_methods() -> tuple[str, ...]:
    """Names of all methods: of this package, then of others and of files that were named."""
    from MedSSLLib.methods import outside

    return (*METHODS, *outside.names())


def load_method(name: str) -> type[Method]:
    """The method's class, imported on demand.

    A name is never taken for a file: see :func:`MedSSLLib.methods.outside.named`.

    Raises:
        InputError: no such method.
    """
    if name in METHODS:
        module, _, attribute = METHODS[name].partition(":")
        return getattr(import_module(module), attribute)
    from MedSSLLib.methods import outside

    found = outside.added(name) or outside.load_offered(name)
    if found is None:
        raise InputError(
            f"method {name!r} does not exist",
            remedy=f"Use one of {', '.join(known_methods())}, or FILE.py:CLASS",
        )
    return found
