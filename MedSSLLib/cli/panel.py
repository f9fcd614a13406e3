"""What the Slicer module has computed beside itself: commands that the list does not show.

They read and write voxels, so that the application's window never waits for it. Results are events.
Only `share` needs torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from MedSSLLib.cli.command import Command, output_options, positive, say
from MedSSLLib.core.events import Events


def _facts_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    output_options(parser)


def facts(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.images.thumbnails import case_facts
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    folder = project.cache_folder / "thumbnails"
    for case in project.cases:
        if not args.cases or case.name in args.cases:
            found = case_facts(case.images[0], case.name, folder)
            events.emit("image", case=case.name, **found)


def _results_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR")
    output_options(parser)


def results(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.evaluation.prediction_summary import (
        predicted_cases,
        predicted_quality,
        prediction_numbers,
    )
    from MedSSLLib.project.project import Project

    known = {case.name: case for case in Project.open(args.project).cases}
    quality = predicted_quality(args.predictions)
    for name in predicted_cases(args.predictions):
        summary = prediction_numbers(args.predictions, name, known.get(name))
        events.emit("metric", case=name, quality=quality.get(name), **summary)


def _unpack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="DIR", help="where KEY.npy are written")
    parser.add_argument(
        "--read",
        nargs=3,
        action="append",
        required=True,
        metavar=("KEY", "image|label", "PATH"),
        help="a file to read; labels are brought onto the grid",
    )
    parser.add_argument(
        "--grid",
        metavar="JSON",
        help='{"shape": [k, j, i], "matrix": [16 numbers]} of the labels, in RAS; without it the '
        "grid of the image read first",
    )
    output_options(parser)


def unpack(args: argparse.Namespace, events: Events) -> None:
    import numpy as np

    from MedSSLLib.images import arrays, io

    grid = None
    if args.grid:
        given = json.loads(args.grid)
        grid = arrays.geometry_of_ras(given["shape"], np.reshape(given["matrix"], (4, 4)))
    for key, kind, path in args.read:
        if kind == "label" and grid is not None:
            volume = io.read_label(path, grid)
        else:
            volume = io.read_image(path, constant=True)
        if grid is None:
            grid = volume.geometry
        file = args.out / f"{key}.npy"
        arrays.save_array(file, volume.array)
        low, high = arrays.shown_range(volume.array)
        matrix = arrays.ras_matrix(volume.geometry).ravel().tolist()
        events.emit("image", key=key, file=str(file), matrix=matrix, low=low, high=high)


def _pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILE.npy")
    parser.add_argument("target", type=Path, metavar="FILE")
    parser.add_argument("--matrix", required=True, metavar="JSON", help="16 numbers, RAS")
    parser.add_argument(
        "--segments", metavar="JSON", help="[[value, name, [r, g, b], terminology], ...]"
    )
    output_options(parser)


def pack(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.images import arrays, io

    volume = arrays.load_array(args.source, json.loads(args.matrix))
    if args.segments:
        entries = []
        for value, name, colour, terminology in json.loads(args.segments):
            entries.append(arrays.SegmentEntry(int(value), name, tuple(colour), terminology))
        arrays.write_segmentation(args.target, volume, entries)
    else:
        io.write_image(args.target, volume)
    events.emit("done", command="pack", path=str(args.target))


def _phantoms_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--kind", choices=("heart", "hippocampus"), default="heart")
    parser.add_argument("--count", type=positive(int), default=6, metavar="N")
    output_options(parser)


def phantoms(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.demo.phantoms import write_phantoms

    written = write_phantoms(args.folder, args.kind, args.count)
    events.emit("done", command="phantoms", images=[str(path) for path in written])
    say(args, f"{args.count} volumes are in {args.folder}/images, labels in {args.folder}/labels.")


def _share_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--run", required=True, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    output_options(parser)


def share(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.interop.share import share_run
    from MedSSLLib.project.project import Project

    share_run(Project.open(args.project), args.run, args.out, events)


def _take_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", required=True, metavar="RUN")
    output_options(parser)


def take(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.interop.share import take_run
    from MedSSLLib.project.project import Project

    folder = take_run(Project.open(args.project), args.source, args.name)
    events.emit("done", command="take", run=args.name, folder=str(folder))


HIDDEN = (
    Command(
        "facts",
        "Sizes, spacings and thumbnails of a project's cases.",
        _facts_arguments,
        facts,
        "PROJECT [CASE ...]",
        ("medssl facts heart --events -",),
    ),
    Command(
        "results",
        "Numbers of predictions: volumes, uncertainty, Dice.",
        _results_arguments,
        results,
        "PROJECT --predictions DIR",
        ("medssl results heart --predictions heart/predictions/finetune-1 --events -",),
    ),
    Command(
        "unpack",
        "Write image files as .npy, for a program that maps them.",
        _unpack_arguments,
        unpack,
        "DIR --read KEY image|label PATH ...",
        ("medssl unpack arrays/ --read image image scan.nii.gz --events -",),
    ),
    Command(
        "pack",
        "Write a .npy as an image file.",
        _pack_arguments,
        pack,
        "FILE.npy FILE --matrix JSON",
        ("medssl pack label.npy label.nrrd --matrix '[1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1]'",),
    ),
    Command(
        "phantoms",
        "Made-up volumes to learn the software with.",
        _phantoms_arguments,
        phantoms,
        "DIR [--kind heart|hippocampus] [--count N]",
        ("medssl phantoms sample/ --kind heart --count 6",),
    ),
    Command(
        "share",
        "Write a model as a bundle that another project can take over.",
        _share_arguments,
        share,
        "PROJECT --run RUN --out DIR",
        ("medssl share heart --run finetune-1 --out heart-model",),
    ),
    Command(
        "take",
        "Take over a shared model as a run.",
        _take_arguments,
        take,
        "PROJECT --from DIR --name RUN",
        ("medssl take other --from heart-model --name heart",),
    ),
)
