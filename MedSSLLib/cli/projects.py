"""``init``, ``add``, ``status``, ``set``, ``relocate``: the project folder."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from MedSSLLib.cli.command import SEL, Command, output_options, print_json, say
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
    _drawn_option(parser)
    parser.add_argument(
        "--modality",
        metavar="NAME",
        help="MR, CT ...; one per channel, with commas (default: what DICOM or dataset.json says, "
        "else CT where values reach below -500 and MR elsewhere)",
    )
    parser.add_argument("--classes", metavar="1=A,2=B", help="names of the label values")
    parser.add_argument("--copy", action="store_true", help="copy the images into the project")
    parser.add_argument("--test", metavar="SEL", default="", help="cases that training never reads")
    output_options(parser)


def _drawn_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--drawn",
        choices=("axial", "coronal", "sagittal"),
        help="label files are drawn on some of these slices only: those that show anything "
        "count, all else is unknown "
        "(default: a whole label, or the slices that a .seg.nrrd records)",
    )


def init(args: argparse.Namespace, events: Events) -> int:
    from MedSSLLib.core.errors import InputError
    from MedSSLLib.project.manifest import FILE_NAME
    from MedSSLLib.project.next_step import next_line
    from MedSSLLib.project.project import Project

    if args.project.exists() and not args.project.is_dir():
        raise InputError(
            "is a file, and a project is a folder",
            file=args.project,
            remedy=f"Give a new folder: medssl init NAME --images {args.images}",
        )
    classes = _class_names(args.classes) if args.classes else {}
    project = Project.create(
        args.project,
        args.images,
        labels=args.labels,
        metadata=args.metadata,
        labelled=args.labelled,
        test=args.test,
        drawn_plane=args.drawn or "",
        modality=args.modality.split(",") if args.modality else None,
    )
    try:
        _describe(project, args, classes)
    except BaseException:
        project.folder.joinpath(FILE_NAME).unlink()  # no project rather than half of one
        with contextlib.suppress(OSError):
            project.folder.rmdir()  # where nothing else is in it
        raise
    left_out = _report(project, events)
    say(args, f"Project {args.project}: {_counts(project)}{left_out}.")
    say(args, next_line(project, args.project))
    return 1 if project.refused else 0


def _describe(project: Project, args: argparse.Namespace, classes: dict[int, str]) -> None:
    """What the options say beyond the files themselves."""
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
    parser.add_argument("--images", type=Path, metavar="PATH", help="the same, as in `medssl init`")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="DIR",
        help="folder of label files named like the images; without PATH, labels of scans that "
        "are there already",
    )
    parser.add_argument("--metadata", type=Path, metavar="CSV", help="table with a column 'case'")
    _drawn_option(parser)
    output_options(parser)


def add(args: argparse.Namespace, events: Events) -> int:
    from MedSSLLib.core.errors import InputError
    from MedSSLLib.project.next_step import next_line
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    if args.drawn:
        project.set_drawn_plane(args.drawn)
    paths = [*args.paths, args.images] if args.images else args.paths
    if paths:
        new = f"{len(project.add(paths, labels=args.labels, metadata=args.metadata))} new"
        if there := len(project.already):
            new += f", {there} {'was' if there == 1 else 'were'} there already"
    elif args.labels and not args.metadata:
        new = _number(len(project.add_labels(args.labels)), "label")
    else:
        raise InputError(
            "there is nothing to add", remedy="Name scans, or a folder of labels with --labels"
        )
    project.save()
    left_out = _report(project, events)
    say(args, f"{new}; in all {_counts(project)}{left_out}.")
    say(args, next_line(project, args.project))
    return 1 if project.refused else 0


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--json", action="store_true", help="print JSON")
    output_options(parser, events=False)


def status(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.cli import tables
    from MedSSLLib.project.next_step import next_line
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    rows = [tables.case_row(case) for case in project.cases]
    runs = [tables.run_row(run) for run in project.runs()]
    if args.json:
        facts = {"name": project.name, "folder": project.folder, "modality": project.modalities}
        print_json(facts | {"labels": project.labels, "cases": rows, "runs": runs})
        return
    kinds = f"{', '.join(project.modalities)}; classes {', '.join(project.classes[1:]) or 'none'}"
    say(args, f"{args.project}: {_counts(project)}; {kinds}.")
    tables.print_cases(rows)
    tables.print_runs(runs)
    say(args, next_line(project, args.project))


def _set_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--classes", metavar="1=A,2=B", help="names of the label values")
    parser.add_argument("--labelled", metavar="SEL", help="the only cases whose labels may be read")
    parser.add_argument("--test", metavar="SEL", help="cases that training never reads")
    parser.add_argument("--modality", metavar="NAME", help="MR, CT ...; one per channel")
    parser.add_argument("--meta", type=Path, metavar="CSV", help="table with a column 'case'")
    _drawn_option(parser)
    output_options(parser)


def set_facts(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.core.errors import InputError
    from MedSSLLib.project.next_step import next_line
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    said = []
    if args.classes:
        classes = _class_names(args.classes)
        _check_all_named(project, classes)
        project.set_labels(classes)
        said.append(
            f"Classes: {', '.join(project.classes[1:])}. Runs keep the names they were trained with"
        )
    if args.labelled is not None or args.test is not None:
        project.set_roles(labelled=args.labelled, test=args.test)
        said.append(
            f"Now {_counts(project)}. Runs that have read a label or scan of a test case say "
            "nothing about it: train again before you score them"
        )
    if args.modality:
        project.set_modality(*args.modality.split(","))
        said.append(
            f"Modality: {', '.join(project.modalities)}. Scans are preprocessed anew; runs from "
            "before keep theirs"
        )
    if args.meta:
        said.append(_set_metadata(project, args.meta))
    if args.drawn:
        project.set_drawn_plane(args.drawn)
        said.append(f"Labels to come count on the {args.drawn} slices that show anything")
    if not said:
        raise InputError("nothing is to be set", remedy="See 'medssl set --help'")
    project.save()
    for text in said:
        say(args, f"{text}.")
    roles = args.labelled is not None or args.test is not None
    again = bool(roles or args.classes or args.modality)
    say(args, next_line(project, args.project, after="set" if again else ""))


def _set_metadata(project: Project, file: Path) -> str:
    from MedSSLLib.core.errors import InputError
    from MedSSLLib.images.io import case_name
    from MedSSLLib.project.metadata import read_metadata

    known = {case.name for case in project.cases}
    changed = 0
    for name, entry in read_metadata(file).items():
        name = name if name in known else case_name(name)
        if name in known:
            project.set_metadata(name, entry)
            changed += 1
    if not changed:
        raise InputError(
            "names no case of the project",
            file=file,
            remedy="Its column 'case' holds file names without extensions.",
        )
    return f"Metadata of {changed} of {len(known)} cases. GCL's runs from before used the old ones"


def _relocate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("old", type=Path, metavar="OLD", help="the folder that the files lay in")
    parser.add_argument("new", type=Path, metavar="NEW", help="the folder they lie in now")
    output_options(parser)


def relocate(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project.next_step import next_line
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    changed = project.relocate(args.old, args.new)
    project.save()
    missing = sum(not path.exists() for path in project.files)
    left = f"; {missing} files are still missing" if missing else ""
    say(args, f"{_number(len(changed), 'case')} now read from {args.new}{left}.")
    if not missing:
        say(args, next_line(project, args.project))


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

    names = {0: "background"}
    for item in text.split(","):
        value, _, name = (part.strip() for part in item.partition("="))
        if not value.isdecimal() or not name:
            raise InputError(
                f"--classes {text!r} is not a list of VALUE=NAME",
                remedy="Example: --classes 1=liver,2=tumour",
            )
        if int(value) in names and int(value):
            raise InputError(
                f"--classes {text!r} names a value twice", remedy="Give each value one name"
            )
        names[int(value)] = name
    return names


def _counts(project: Project) -> str:
    roles = {"labelled": project.labelled, "unlabelled": project.unlabelled, "test": project.test}
    parts = [f"{len(cases)} {role}" for role, cases in roles.items() if cases]
    if not parts:
        return "no cases"
    return f"{_number(len(project.cases), 'case')} ({', '.join(parts)})"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


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
        "set",
        "Change what a project says of its cases.",
        _set_arguments,
        set_facts,
        "PROJECT [--classes 1=A,2=B] [--labelled SEL] [--test SEL] [--modality M] [--meta CSV]",
        (
            "medssl set heart --classes 1=ventricle,2=muscle",
            "medssl set heart --test case03,case04 --labelled case01",
        ),
        f"Says what a change makes invalid. {SEL}",
    ),
    Command(
        "relocate",
        "Read scans and labels from a folder that they were moved to.",
        _relocate_arguments,
        relocate,
        "PROJECT OLD NEW",
        ("medssl relocate heart /old/disk/scans /new/disk/scans",),
        "Every file of the project below OLD is read from the same place below NEW.",
    ),
)
