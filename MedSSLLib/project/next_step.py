"""The line that says what to do next, for the end of a command.

What comes next is decided by :mod:`MedSSLLib.project.advice`, as in the panels; here it becomes a
command that can be typed as it stands.
"""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.io import read_header
from MedSSLLib.project import advice
from MedSSLLib.project.project import Project


def next_line(project: Project, typed: Path, *, after: str = "", run: str = "") -> str:
    """``"Next: medssl ..."``.

    Args:
        project: as it is now.
        typed: the project folder as the user gave it.
        after: the command that has ended.
        run: the run that it made.
    """
    return f"Next: {_command(project, shlex.quote(str(typed)), after, run)}"


def _command(project: Project, folder: str, after: str, run: str) -> str:
    labelled = any(advice.teaches(case) for case in project.pool)
    if after == "suggest":
        return f"draw these slices, then: medssl add {folder} --labels FOLDER --drawn"
    if after == "pretrain" and labelled:
        return f"medssl finetune {folder} --init {run}"
    if after == "finetune" and advice.few_labelled(project.cases):
        return f"medssl selftrain {folder} --from {run}"
    if after in ("finetune", "selftrain", "live"):
        return f"medssl predict {folder} --run {run} --out segmentations"
    runs = project.runs()
    step = advice.next_step(project.cases, runs)
    if after == "set" and labelled:  # the models know what was said before
        step = "finetune"
    if step == "finetune":
        init = _latest(advice.encoders(runs))
        return f"medssl finetune {folder}{init and f' --init {init}'}"
    words = advice.NEXT_LINES[step].replace("PROJECT", folder)
    return words.replace("RUN", _latest(advice.models(runs))).replace("DIR", "segmentations")


def _latest(names: list[str]) -> str:
    return names[-1] if names else ""


def recommended(project: Project) -> tuple[str, str]:
    """The pre-training method that suits the data, and why: ``("gcl", "as slices are ...")``."""
    spacings = []
    columns: set[str] = set()
    for case in project.pool:
        columns |= case.metadata.keys()
        with contextlib.suppress(InputError):
            spacings.append(read_header(case.images[0]).spacing)
    found = advice.recommended_method(spacings, sorted(columns))
    names = ", ".join(found.columns[:3])
    why = {
        "unknown": "the one for volumes, as no scan could be read",
        "thick": f"as slices are {found.ratio:.1f} times thicker than pixels",
        "metadata": f"as the metadata ({names}) say which slices are alike",
        "even": "as voxels are nearly as thick as wide",
    }
    return found.method, why[found.reason]
