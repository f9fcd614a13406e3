"""``init``, ``add``, ``status``, ``runs``, ``show``: the project folder."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedSSLLib.cli.command import SEL, Command, output_options, say
from MedSSLLib.core.events import Events

if TYPE_CHECKING:
    from MedSSLLib.project.project import Project


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "project", type=Path, metavar="PROJECT", help="folder to make, for manifest, cache and runs"
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR|JSON",
        help="folder of NIfTI, NRRD, MetaImage files or DICOM series, or a dataset.json / "
        "data-set folder",
    )
    parser.add_argument(
        "--labels", type=Path, metavar="DIR", help="folder of label files named like the images"
    )
    parser.add_argument(
        "--metadata",
        type=Path,
        metavar="CSV",
        help="table with a column 'case'; patient, phase, scanner ...",
    )
    parser.add_argument(
        "--labelled",
        metavar="SEL",
        help="the only cases whose labels may be read (default: all that have one)",
    )
    parser.add_argument(
        "--drawn",
        choices=("axial", "coronal", "sagittal"),
        help="label files are drawn on some of these slices only: those that show anything "
        "count, all else is unknown "
        "(default: a whole label, or the slices that a .seg.nrrd records)",
    )
    parser.add_argument(
        "--modality", metavar="NAME", help="MR (default), CT ...; one per channel, with commas"
    )
    parser.add_argument("--classes", metavar="1=A,2=B", help="names of the label values")
    parser.add_argument("--copy", action="store_true", help="copy the images into the project")
    parser.add_argument("--test", metavar="SEL", default="", help="cases that training never reads")
    output_options(parser)


def init(args: argparse.Namespace, events: Events) -> int:
    from MedSSLLib.project.manifest import FILE_NAME
    from MedSSLLib.project.project import Project

    classes = _class_names(args.classes) if args.classes else {}
    project = Project.create(
        args.project,
        args.images,
        labels=args.labels,
        metadata=args.metadata,
        labelled=args.labelled,
        test=args.test,
        drawn_plane=args.drawn or "",
    )
    try:
        _describe(project, args, classes)
    except BaseException:
        project.folder.joinpath(FILE_NAME).unlink()  # no project rather than half of one
        with contextlib.suppress(OSError):
            project.folder.rmdir()  # where nothing else is in it
        raise
    say(args, f"Project {project.folder}: {_counts(project)}{_report(project, events)}.")
    return 1 if project.refused else 0


def _describe(project: Project, args: argparse.Namespace, classes: dict[int, str]) -> None:
    """What the options say beyond the files themselves."""
    if args.modality:
        project.set_modality(*args.modality.split(","))
    if classes:
        _check_all_named(project, classes)
        project.set_labels(classes)
    if args.copy:
        project.copy_images()
    project.save()


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument(
        "paths", type=Path, nargs="*", metavar="PATH", help="image files or folders"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="DIR",
        help="folder of label files named like the images; without PATH, labels of scans that "
        "are there already",
    )
    parser.add_argument("--metadata", type=Path, metavar="CSV", help="table with a column 'case'")
    output_options(parser)


def add(args: argparse.Namespace, events: Events) -> int:
    from MedSSLLib.core.errors import InputError
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    if args.paths:
        new = f"{len(project.add(args.paths, labels=args.labels, metadata=args.metadata))} new"
    elif args.labels and not args.metadata:
        count = len(project.add_labels(args.labels))
        new = f"{count} label{'s' * (count > 1)}"
    else:
        raise InputError(
            "there is nothing to add", remedy="Name scans, or a folder of labels with --labels"
        )
    project.save()
    say(args, f"{new}, in all {_counts(project)}{_report(project, events)}.")
    return 1 if project.refused else 0


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--json", action="store_true", help="print JSON")
    output_options(parser, events=False)


def status(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.cli import tables
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    rows = [tables.case_row(case) for case in project.cases]
    runs = [tables.run_row(run) for run in project.runs()]
    if args.json:
        facts = {"name": project.name, "folder": project.folder, "modality": project.modalities}
        _print_json(facts | {"labels": project.labels, "cases": rows, "runs": runs})
        return
    kinds = f"{', '.join(project.modalities)}; classes {', '.join(project.classes)}"
    say(args, f"{project.folder}: {_counts(project)}; {kinds}.")
    tables.print_cases(rows)
    tables.print_runs(runs)


def _runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--json", action="store_true", help="print JSON")
    output_options(parser, events=False)


def runs(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.cli import tables
    from MedSSLLib.project.project import Project

    rows = [tables.run_row(run) for run in Project.open(args.project).runs()]
    if args.json:
        _print_json(rows)
    elif rows:
        tables.print_runs(rows)
    else:
        say(args, "No runs yet. Start with: medssl pretrain or medssl finetune.")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("run", metavar="RUN", help="name of a run")
    parser.add_argument(
        "--json", action="store_true", help="print JSON, the whole configuration included"
    )
    output_options(parser, events=False)


def show(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.cli import tables
    from MedSSLLib.core.errors import InputError
    from MedSSLLib.project.project import Project
    from MedSSLLib.project.runs import summary

    project = Project.open(args.project)
    folder = project.run_folder(args.run)
    if not folder.is_dir():
        known = ", ".join(run["name"] for run in project.runs()) or "none yet"
        raise InputError("this run does not exist", file=folder, remedy=f"Runs: {known}")
    run = summary(folder)
    if args.json:
        _print_json(run)
    else:
        tables.print_run(run)


def _report(project: Project, events: Events) -> str:
    """Tell what was left out and why; returns what the summary says of it.

    The good cases went on.
    """
    for problem in project.refused:
        events.emit("warning", message=f"left out: {problem}", case=problem.case, file=problem.file)
    for text in project.warnings:
        events.emit("warning", message=text)
    return f"; {len(project.refused)} left out, see the warnings" if project.refused else ""


def _check_all_named(project: Project, classes: dict[int, str]) -> None:
    """Raise InputError for values in the project's labels that are not named.

    Their cases could not be trained on.
    """
    from MedSSLLib.core.errors import InputError

    unnamed = {value: name for value, name in project.labels.items() if value not in classes}
    if unnamed:
        raise InputError(
            f"--classes does not name the values {', '.join(map(str, unnamed))}, which the "
            "labels have",
            remedy=f"Add {','.join(f'{value}={name}' for value, name in unnamed.items())}, with "
            "any name; "
            "'ignore' is for voxels that do not count",
        )


def _class_names(text: str) -> dict[int, str]:
    """``"1=liver,2=tumour"`` -> ``{0: "background", 1: "liver", 2: "tumour"}``."""
    from MedSSLLib.core.errors import InputError

    pairs = [item.partition("=") for item in text.split(",")]
    if not all(value.strip().isdecimal() and name.strip() for value, _, name in pairs):
        raise InputError(
            f"--classes {text!r} is not a list of VALUE=NAME",
            remedy="Example: --classes 1=liver,2=tumour",
        )
    if len({int(value) for value, _, _ in pairs}) < len(pairs):
        raise InputError(
            f"--classes {text!r} names a value twice", remedy="Give each value one name"
        )
    return {0: "background"} | {int(value): name.strip() for value, _, name in pairs}


def _counts(project: Project) -> str:
    roles = {"labelled": project.labelled, "unlabelled": project.unlabelled, "test": project.test}
    parts = [f"{len(cases)} {role}" for role, cases in roles.items() if cases]
    noun = "case" if len(project.cases) == 1 else "cases"
    return f"{len(project.cases)} {noun} ({', '.join(parts)})" if parts else "no cases"


def _print_json(value: Any) -> None:
    from MedSSLLib.core.events import to_json

    print(json.dumps(to_json(value), indent=1, ensure_ascii=False, allow_nan=False))


COMMANDS = (
    Command(
        "init",
        "Make a project from a folder of scans.",
        _init_arguments,
        init,
        "PROJECT --images DIR|dataset.json [options]",
        (
            "medssl init heart --images scans/",
            "medssl init heart --images scans/ --labels masks/ --labelled case03,case17 --test "
            "@test.txt",
            "medssl init heart --images Task02_Heart/dataset.json",
        ),
        "Images are referenced, never changed. Cases that cannot be used are listed with the "
        f"reason; the others go on, and the exit code is then 1. {SEL}",
    ),
    Command(
        "add",
        "Add scans, or labels of scans that are there, to a project.",
        _add_arguments,
        add,
        "PROJECT [PATH ...] [options]",
        ("medssl add heart more-scans/", "medssl add heart --labels masks/"),
    ),
    Command(
        "status",
        "Show cases, labels and runs of a project.",
        _status_arguments,
        status,
        "PROJECT [--json]",
        ("medssl status heart",),
    ),
    Command(
        "runs",
        "List the runs of a project.",
        _runs_arguments,
        runs,
        "PROJECT [--json]",
        ("medssl runs heart", "medssl runs heart --json"),
    ),
    Command(
        "show",
        "Show one run: settings, results, files.",
        _show_arguments,
        show,
        "PROJECT RUN [--json]",
        ("medssl show heart finetune-1",),
    ),
)
