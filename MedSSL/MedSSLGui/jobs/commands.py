"""Command lines of the library, from what the panels hold. See the command line's own help for every option."""

import json


def command(name, project, *options):
    """`-m MedSSLLib NAME PROJECT ... --events -`; options that are None, "" or False are left out."""
    arguments = ["-m", "MedSSLLib", name, str(project)]
    for option in options:
        flag, value = option if isinstance(option, tuple) else (option, True)
        if not flag or value in (None, "", False):
            continue
        arguments.append(flag)
        if value is not True:
            arguments.append(str(value))
    return arguments + ["--events", "-"]


def offered(name):
    """Whether the installed library has the command."""
    from MedSSLLib.cli.main import GROUPS

    return any(found.name == name for _, group in GROUPS for found in group)


def length(minutes):
    """The time limit as an option; 0 leaves it to the preset."""
    return ("--minutes", minutes if minutes else None)


def add(project, paths):
    """Add images, DICOM folders or folders of images."""
    return ["-m", "MedSSLLib", "add", str(project), *(str(path) for path in paths), "--events", "-"]


def facts(project, cases=()):
    """Sizes and thumbnails, as events `image`."""
    return ["-m", "MedSSLLib", "facts", str(project), *cases, "--events", "-"]


def results(project, folder):
    """Numbers of the predictions in a folder, as events `metric`."""
    return command("results", project, ("--predictions", str(folder)))


def unpack(folder, files, grid=None):
    """Image files as .npy: files are (key, "image" or "label", path); grid is (shape, matrix) of the labels, in RAS."""
    arguments = ["-m", "MedSSLLib", "unpack", str(folder)]
    for key, kind, path in files:
        arguments += ["--read", key, kind, str(path)]
    if grid is not None:
        shape, matrix = grid
        numbers = [float(number) for number in matrix.ravel()]
        given = {"shape": [int(n) for n in shape], "matrix": numbers}
        arguments += ["--grid", json.dumps(given)]
    return arguments + ["--events", "-"]


def pack(source, target, matrix, classes=None):
    """A .npy as an image file, with `classes` as a segmentation (.seg.nrrd)."""
    numbers = json.dumps([float(number) for number in matrix.ravel()])
    segments = None if classes is None else json.dumps([list(entry) for entry in classes])
    return [
        *("-m", "MedSSLLib", "pack", str(source), str(target), "--matrix", numbers),
        *(("--segments", segments) if segments else ()),
        *("--events", "-"),
    ]


def phantoms(folder, kind, count):
    """Made-up volumes in folder/images, their labels in folder/labels."""
    arguments = ["-m", "MedSSLLib", "phantoms", str(folder), "--kind", kind]
    return arguments + ["--count", str(count), "--events", "-"]


def pretrain(project, settings):
    """settings: method, meta, preset, minutes, device, name."""
    meta = settings.get("meta") if settings["method"] == "gcl" else None
    return command(
        "pretrain",
        project,
        ("--method", settings["method"]),
        ("--meta", meta),
        ("--preset", settings["preset"]),
        length(settings["minutes"]),
        ("--device", settings["device"]),
        ("--name", settings.get("name")),
    )


def finetune(project, settings):
    """settings: init, semi, mixup, freeze, preset, minutes, device, name."""
    return command(
        "finetune",
        project,
        ("--init", settings["init"] or "none"),
        "--freeze-encoder" if settings["freeze"] else None,
        ("--semi", settings["semi"] if settings["semi"] != "none" else None),
        ("--mixup", settings["mixup"] if settings["mixup"] else None),
        ("--preset", settings["preset"]),
        length(settings["minutes"]),
        ("--device", settings["device"]),
        ("--name", settings.get("name")),
    )


def selftrain(project, settings):
    """settings: source (a finished run, or ""), init, rounds, preset, minutes, device, name."""
    start = (
        ("--from", settings["source"])
        if settings["source"]
        else ("--init", settings["init"] or "none")
    )
    return command(
        "selftrain",
        project,
        start,
        ("--rounds", settings["rounds"] or None),
        ("--preset", settings["preset"]),
        length(settings["minutes"]),
        ("--device", settings["device"]),
        ("--name", settings.get("name")),
    )


def resume(project, run):
    """Go on with an unfinished run; `run` is its summary. Everything else is in its config.json."""
    from MedSSLLib.project.advice import run_config

    config = run_config(run)
    name = config.get("command", "finetune")
    method = ("--method", config.get("method")) if name == "pretrain" else None
    start = ("--from", config.get("from")) if name == "selftrain" and config.get("from") else None
    if name == "selftrain" and start is None:
        start = ("--init", config.get("init", "none"))
    return command(
        name,
        project,
        method,
        start,
        ("--preset", config.get("preset")),
        ("--name", run["name"]),
        "--resume",
    )


def predict(project, settings):
    """settings: run, out, cases (names), uncertainty, quality, device."""
    return command(
        "predict",
        project,
        ("--run", settings["run"]),
        ("--out", str(settings["out"])),
        ("--cases", ",".join(settings["cases"])),
        "--uncertainty" if settings["uncertainty"] else None,
        "--quality" if settings["quality"] else None,
        ("--device", settings["device"]),
    )


def predictFile(project, run, image, out):
    """Segment an image file that is no case."""
    return command(
        "predict", project, ("--run", run), ("--images", str(image)), ("--out", str(out))
    )


def suggest(project, budget, run):
    """Which slices to annotate next."""
    return command("suggest", project, ("--budget", budget), ("--run", run))


def complete(project, case, init, device):
    """Fill in the slices between the annotated ones, within minutes."""
    from MedSSLLib.project.advice import COMPLETE_MINUTES

    return command(
        "complete",
        project,
        ("--case", case),
        ("--init", init or "none"),
        length(COMPLETE_MINUTES),
        ("--device", device),
    )


def live(project, init, run=None):
    """The model that learns while one draws, asked on its standard input; `run`: one to go on with, by its name."""
    start = ("--init", init or "none") if run is None else None
    again = (("--name", run), "--resume") if run else ()
    return command("live", project, start, *again, ("--requests", "-"))


def report(project, run, out):
    """An HTML report of a run."""
    return command("report", project, ("--run", run), ("--out", str(out)))


def share(project, run, folder):
    """A model as a bundle with its card."""
    return command("share", project, ("--run", run), ("--out", str(folder)))


def take(project, source, name):
    """A shared model (a folder), or the encoder of a weight file, as a run of the project."""
    kind = "take" if source.is_dir() else "import"
    return command(kind, project, ("--from", str(source)), ("--name", name))


def goOn(project, run, accepted, rejected, settings):
    """Self-training from a run whose pseudo-labels were looked at. settings: rounds, preset, minutes."""
    return command(
        "selftrain",
        project,
        ("--from", run),
        ("--accept", ",".join(accepted)),
        ("--reject", ",".join(rejected)),
        ("--rounds", settings["rounds"] or None),
        ("--preset", settings["preset"]),
        length(settings["minutes"]),
    )
