"""Command lines of the library, from what the panels hold. See the command line's own help for every option."""

from pathlib import Path

COMPLETE_MINUTES = 3  # somebody waits for it


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
    """Sizes and thumbnails, by the helper script beside this file."""
    return [str(Path(__file__).with_name("facts.py")), str(project), *cases]


def convert(source, target):
    """One image file as another format, by the helper script beside this file."""
    return [str(Path(__file__).with_name("convert.py")), str(source), str(target)]


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
    """settings: source (a finished run, or ""), init, rounds, matching, preset, minutes, device, name."""
    start = (
        ("--from", settings["source"])
        if settings["source"]
        else ("--init", settings["init"] or "none")
    )
    return command(
        "selftrain",
        project,
        start,
        ("--rounds", settings["rounds"]),
        ("--matching", settings["matching"]),
        ("--preset", settings["preset"]),
        length(settings["minutes"]),
        ("--device", settings["device"]),
        ("--name", settings.get("name")),
    )


def resume(project, run):
    """Go on with an unfinished run; `run` is its summary. Everything else is in its config.json."""
    config = run.get("config") or {}
    config = config.get("config", config)
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


def predict(project, run, out, cases, uncertainty, device):
    """Segment cases of the project."""
    return command(
        "predict",
        project,
        ("--run", run),
        ("--out", str(out)),
        ("--cases", ",".join(cases)),
        "--uncertainty" if uncertainty else None,
        ("--device", device),
    )


def suggest(project, budget, run):
    """Which slices to annotate next."""
    return command("suggest", project, ("--budget", budget), ("--run", run))


def complete(project, case, init, device):
    """Fill in the slices between the annotated ones, within minutes."""
    return command(
        "complete",
        project,
        ("--case", case),
        ("--init", init or "none"),
        length(COMPLETE_MINUTES),
        ("--device", device),
    )


def report(project, run, out):
    """An HTML report of a run."""
    return ["-m", "MedSSLLib", "report", str(project), "--run", run, "--out", str(out)]
