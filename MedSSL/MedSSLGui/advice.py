"""Words for the panels: methods, what suits the data, how long and how much memory before anything starts."""

from slicer.i18n import tr as _

from . import annotation

STEPS = {"quick": 300, "standard": 2000, "paper": 20000}


def methods():
    """(key, name, explanation) of the pre-training methods."""
    return [
        (
            "pgl",
            "PGL",
            _(
                "Compares two views of a volume voxel by voxel, knowing where each was cut. For 3D volumes "
                "with nearly equal spacing."
            ),
        ),
        (
            "gcl",
            "GCL",
            _(
                "Compares slices that share a patient, a position or a phase. For thick slices and for data "
                "with metadata."
            ),
        ),
        ("byol", "BYOL", _("Compares two views of a volume as a whole. A baseline for PGL.")),
        ("simclr", "SimCLR", _("Tells each image from all others. A baseline for GCL.")),
        (
            "restoration",
            _("Restoration"),
            _("Repairs damaged images. Simple and robust with few scans."),
        ),
    ]


def presets():
    """(key, name) of the presets."""
    return [
        ("quick", _("Quick: minutes on a laptop")),
        ("standard", _("Standard: about an hour")),
        ("paper", _("Paper: the published scale, days without a GPU")),
    ]


def recommended(facts, metadataColumns):
    """(method, why) for the data: 3D with nearly equal spacing: PGL; thick slices or metadata: GCL."""
    spacings = [fact["spacing"] for fact in facts if fact.get("spacing")]
    if not spacings:
        return "pgl", _(
            "Recommended once the volumes are read: PGL for volumes, GCL for thick slices."
        )
    ratios = sorted(max(s) / sorted(s)[1] for s in spacings)
    ratio = ratios[len(ratios) // 2]
    if ratio >= 3:
        return "gcl", _(
            "Recommended: GCL, since slices are {ratio:.1f} times thicker than pixels."
        ).format(ratio=ratio)
    useful = [
        column for column in metadataColumns if column.lower() not in ("patient", "patient_id")
    ]
    if useful and ratio > 1.5:
        return "gcl", _(
            "Recommended: GCL, since the metadata ({names}) say which slices are alike."
        ).format(names=", ".join(useful[:3]))
    return "pgl", _("Recommended: PGL, since the volumes have nearly equal spacing.")


def estimate(facts, preset, minutes, history):
    """One line: time and memory before starting.

    history: (preset, seconds) of finished runs of this project, the best guide there is.
    """
    if minutes:
        time = _("Time: {n:g} min, then it ends by itself").format(n=minutes)
    else:
        past = [seconds for name, seconds in history if name == preset]
        time = (
            _("Time: about {time}, as the last run with this preset").format(
                time=duration(past[-1])
            )
            if past
            else _("Time: known after the first steps (a time limit makes it certain)")
        )
    voxels = [
        fact["size"][0] * fact["size"][1] * fact["size"][2] for fact in facts if fact.get("size")
    ]
    memory = 1.5 + (max(voxels) * 4 * 3 / 2**30 if voxels else 0)
    disk = sum(voxels) * 4 / 2**30
    return _(
        "{time}. Memory: about {memory:.1f} GiB, whatever the number of scans. Disk: up to {disk:.1f} GiB."
    ).format(time=time, memory=memory, disk=max(disk, 0.1))


def duration(seconds):
    """Seconds as people say it."""
    if seconds is None:
        return ""
    if seconds < 90:
        return _("{n} s").format(n=round(seconds))
    if seconds < 5400:
        return _("{n} min").format(n=round(seconds / 60))
    return _("{n:.1f} h").format(n=seconds / 3600)


def annotationText(case, names):
    """What the table says about a case's annotation."""
    if case.label is None:
        return _("none")
    if case.annotated is None:
        return _("whole volume")
    slices = annotation.fromManifest(case.annotated)
    parts = [
        _("{n} {direction} slices").format(
            n=len(indices), direction=names[axis] if names else "ijk"[axis]
        )
        for axis, indices in slices.items()
    ]
    return ", ".join(parts) or _("none")


def nextStep(store):
    """What to do next, for the status line."""
    if not store.isOpen():
        return _("Choose a project folder to begin.")
    if not store.cases:
        return _("Next: add volumes in panel 1.")
    runs = [run for run in store.runs() if run["finished"]]
    commands = {command(run) for run in runs}
    if not store.labelledCases():
        if "pretrain" in commands:
            return _("Next: annotate a few slices in panel 3.")
        return _("Next: pre-train in panel 2, or annotate a few slices in panel 3 meanwhile.")
    if not commands & {"finetune", "selftrain"}:
        return _("Next: fine-tune in panel 4.")
    return _("Next: predict and review in panel 5.")


def command(run):
    """The command that made a run."""
    config = run.get("config") or {}
    return config.get("config", config).get("command", "")
