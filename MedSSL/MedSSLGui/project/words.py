"""The library's advice in words for the panels: methods, what suits the data, what it takes, what comes next."""

from slicer.i18n import tr as _


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
            _("Repairs damaged images. A baseline; try it where the others have too few scans."),
        ),
    ]


def presets(command):
    """(key, name) of the presets of "pretrain", or of "finetune" and the self-training beside it."""
    from MedSSLLib.config.lengths import PRESET_MINUTES, PRESETS

    usual, night = PRESET_MINUTES["standard"], PRESET_MINUTES["overnight"]
    names = {
        "quick": _("Quick: a few minutes"),
        "standard": _("Standard: {n:g} min").format(n=usual[command]),
        "overnight": _("Overnight: {n:g} h").format(n=night[command] / 60),
        "paper": _("Paper: the published scale"),
    }
    if command == "finetune":
        then = _("{length}, self-training {n:g}")
        names["standard"] = then.format(length=names["standard"], n=usual["selftrain"])
        names["overnight"] = then.format(length=names["overnight"], n=night["selftrain"] / 60)
    return [(key, names[key]) for key in PRESETS]


def recommended(facts, metadataColumns):
    """(method, why) for the data, as the library recommends it."""
    from MedSSLLib.project.advice import recommended_method

    spacings = [fact["spacing"] for fact in facts if fact.get("spacing")]
    found = recommended_method(spacings, metadataColumns)
    why = {
        "unknown": _(
            "Recommended once the volumes are read: PGL for volumes, GCL for thick slices."
        ),
        "thick": _("Recommended: GCL, since slices are {ratio:.1f} times thicker than pixels."),
        "metadata": _("Recommended: GCL, since the metadata ({names}) say which slices are alike."),
        "even": _("Recommended: PGL, since the volumes have nearly equal spacing."),
    }[found.reason]
    return found.method, why.format(ratio=found.ratio, names=", ".join(found.columns[:3]))


def estimate(facts, settings, runs):
    """One line: time and memory before starting. settings: method, preset, minutes."""
    from MedSSLLib.config.lengths import PRESET_MINUTES
    from MedSSLLib.project import advice

    minutes = settings["minutes"] or PRESET_MINUTES.get(settings["preset"], {}).get("pretrain")
    if minutes:
        time = _("Time: {n:g} min, then it ends by itself").format(n=minutes)
    else:
        past = advice.seconds_before(runs, "pretrain", settings["preset"], settings["method"])
        if past is None:
            time = _("Time: known after the first steps (a time limit makes it certain)")
        else:
            time = _("Time: about {time}, as the last such run").format(time=duration(past))
    voxels = []
    for fact in facts:
        if fact.get("size"):
            voxels.append(fact["size"][0] * fact["size"][1] * fact["size"][2])
    found = advice.needs(voxels)
    return _(
        "{time}. Memory: about {memory:.1f} GiB, whatever the number of scans. Disk: up to {disk:.1f} GiB."
    ).format(time=time, memory=found.memory, disk=found.disk)


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
    parts = []
    for axis, indices in case.annotated.slices:
        direction = names[axis] if names else "ijk"[axis]
        parts.append(_("{n} {direction}").format(n=len(indices), direction=direction))
    return ", ".join(parts) or _("none")


def nextStep(store):
    """What to do next, for the status line."""
    from MedSSLLib.project.advice import next_step

    if not store.isOpen():
        return _("Choose a project folder to begin.")
    return {
        "add": _("Next: add volumes in panel 1."),
        "annotate": _("Next: annotate a few slices in panel 3. Panel 2 is optional."),
        "finetune": _("Next: fine-tune in panel 4."),
        "selftrain": _(
            "Next: self-train in panel 4, to learn from the volumes without labels too."
        ),
        "predict": _("Next: predict and review in panel 5."),
    }[next_step(store.cases, store.runs())]


def sliceNumber(index):
    """A slice as people count: from 1."""
    return index + 1


def resultTexts(row, names):
    """Cells of a prediction in the table of results; names: {class value: name}."""
    volumes = []
    for value, millilitres in row["volumes_ml"].items():
        volumes.append(f"{names.get(int(value), value)} {millilitres:.1f}")
    return [
        row["case"],
        qualityText(row.get("quality")),
        "" if row["dice"] is None else f"{row['dice']:.3f}",
        "" if row["uncertainty"] is None else f"{row['uncertainty']:.3f}",
        row["problem"] or ", ".join(volumes),
    ]


def qualityText(entry):
    """The predicted Dice with its interval, marked where the case is to be looked at."""
    if not entry or entry.get("dice") is None:
        return ""
    text = f"{entry['dice']:.2f}"
    if entry.get("low") is not None:
        text += f" ({entry['low']:.2f}–{entry['high']:.2f})"
    return text + (" " + _("look") if entry.get("review") else "")


def leastSure(row):
    """Cases to look at first come first: low predicted Dice, then high uncertainty."""
    quality = row.get("quality") or {}
    predicted = quality.get("dice")
    uncertainty = row["uncertainty"] if row["uncertainty"] is not None else -1.0
    return (2.0 if predicted is None else predicted, -uncertainty, row["case"])
