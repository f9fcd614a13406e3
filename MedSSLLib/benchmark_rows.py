"""Rows of a benchmark: what a name such as ``pgl-frozen+selftrain`` stands for.

A row is ``random``, a pre-training method or one of VARIANTS, each with ``-frozen`` for a fixed encoder, and for what
comes on top ``+mean-teacher``, ``+mixup``, ``+selftrain``, which goes on from the row without it, or ``+longer``, which
trains on the labels alone for as long as ``+selftrain`` and the row before it together.
"""

from __future__ import annotations

from typing import Any

from MedSSLLib.benchmark_records import BASELINE
from MedSSLLib.errors import InputError
from MedSSLLib.methods import METHODS

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gcl-image": ("gcl", {"options.pixel": False}),
    "gcl-sum": ("gcl", {"options.pixel": False, "options.gradient": "sum"}),
    "gcl-patient": ("gcl", {"options.pixel": False, "options.meta": ["patient"]}),
    "gcl-position": ("gcl", {"options.pixel": False, "options.meta": ["position"]}),
    "gcl-phase": ("gcl", {"options.pixel": False, "options.meta": ["phase"]}),
    "gcl-no-filter": ("gcl", {"options.grad_filter": False}),
    "pgl-no-scale": ("pgl", {"options.use_scale_prior": False}),
    "pgl-no-flip": ("pgl", {"options.use_flip_prior": False}),
}
"""Ablations: the method and its settings."""
ON_TOP: dict[str, dict[str, Any]] = {"mean-teacher": {"semi": "mean-teacher"}, "mixup": {"mixup": 0.2}, "selftrain": {},
                                     "longer": {}}  # fmt: skip


def parse_row(row: str) -> tuple[str, bool, str]:
    """The encoder of a row, whether it is frozen, and what comes on top ('' for nothing).

    Raises:
        InputError: no such row.
    """
    base, plus, on_top = row.partition("+")
    encoder = base.removesuffix("-frozen")
    frozen = encoder != base
    known = (BASELINE, *METHODS, *VARIANTS)
    if encoder not in known or (plus and on_top not in ON_TOP) or (frozen and encoder == BASELINE):
        raise InputError(
            f"method {row!r} is unknown",
            remedy=f"Use {', '.join(known)}; all but random with -frozen; each with +{', +'.join(ON_TOP)}",
        )
    return encoder, frozen, on_top
