"""Rows of a benchmark: what a name such as ``pgl-frozen+selftrain`` stands for.

A row is ``random``, a pre-training method or one of VARIANTS, each with ``-frozen`` for a fixed encoder, ``-3-slices``
where only three slices of every labelled volume count (or another number), and for what comes on top ``+mean-teacher``,
``+mixup``, ``+selftrain``, which goes on from the row without it, or ``+longer``, which trains on the labels alone for
as long as ``+selftrain`` and the row before it together.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

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


_ROW = re.compile(r"(?P<encoder>.+?)(?P<frozen>-frozen)?(-(?P<slices>[1-9][0-9]*)-slices)?([+](?P<on_top>.+))?")


class Row(NamedTuple):
    """What a row is made of.

    Attributes:
        encoder: ``random``, a method or one of VARIANTS.
        frozen: whether the encoder is fixed.
        slices: annotated slices of every labelled volume; 0 for whole volumes.
        on_top: what comes on top; '' for nothing.
    """

    encoder: str
    frozen: bool = False
    slices: int = 0
    on_top: str = ""


def parse_row(row: str) -> Row:
    """The parts of a row's name.

    Raises:
        InputError: no such row.
    """
    known = (BASELINE, *METHODS, *VARIANTS)
    if found := _ROW.fullmatch(row):
        parts = Row(found["encoder"], bool(found["frozen"]), int(found["slices"] or 0), found["on_top"] or "")
        fits = parts.encoder in known and parts.on_top in ("", *ON_TOP)
        if fits and not (parts.frozen and parts.encoder == BASELINE):
            return parts
    raise InputError(
        f"method {row!r} is unknown",
        remedy=f"Use {', '.join(known)}; all but random with -frozen; each with -3-slices (or another number); "
               f"then +{', +'.join(ON_TOP)}",
    )  # fmt: skip


def baseline_of(row: str) -> str:
    """The random start that a row is to be judged against: that with as many annotated slices of every volume."""
    found = _ROW.fullmatch(row)
    return f"{BASELINE}-{found['slices']}-slices" if found and found["slices"] else BASELINE
