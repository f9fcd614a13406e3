"""``predict``, ``evaluate``, ``export``, ``import``: using a trained model."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedSSLLib.cli.command import (
    SEL,
    Command,
    announce,
    device_options,
    output_options,
    parse_settings,
    say,
    tolerance_option,
)
from MedSSLLib.core.events import Events

if TYPE_CHECKING:
    from MedSSLLib.project.project import Project


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--run", required=True, metavar="RUN", help="a finished run that segments")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cases", metavar="SEL", help="cases of the project (default: all)")
    which.add_argument(
        "--images",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="image files, DICOM folders or folders",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for CASE.nii.gz"
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="also write the probability of each class"
    )
    parser.add_argument(
        "--uncertainty", action="store_true", help="also write where the model is unsure, 0 to 1"
    )
    parser.add_argument(
        "--flips",
        action="store_true",
        help="average over mirrored images, 4 to 8 times slower; for models trained with flips "
        "(augment.flip)",
    )
    parser.add_argument(
        "--quality",
        action="store_true",
        help="also estimate the Dice of every case, into quality.json (six times slower)",
    )
    parser.add_argument(
        "--components",
        choices=("auto", "largest", "all"),
        default="auto",
        help="pieces to keep: of structures that are one piece in the training labels the surest "
        "and those nearly as sure (auto, default); the largest of every class; or all",
    )
    group = parser.add_argument_group("device")
    device_options(group)
    output_options(parser)


def predict(args: argparse.Namespace, events: Events) -> int:
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    project.require_run(args.run)
    announce(args, f"Segmenting with {args.run} ...")
    from MedSSLLib.cli import tables
    from MedSSLLib.inference.model import PredictOptions
    from MedSSLLib.inference.predict import run_predict

    options = PredictOptions(
        probabilities=args.probabilities,
        uncertainty=args.uncertainty,
        flips=args.flips,
        quality=args.quality,
        components=args.components,
        device=args.device or "auto",
        precision=args.precision or "auto",
    )
    result = run_predict(
        project,
        args.run,
        args.out,
        events,
        cases=args.cases,
        images=args.images or (),
        options=options,
    )
    if result.quality and not args.quiet:
        tables.print_estimates(result.quality)
    count = len(result.written)
    noun = f"segmentation{'s' * (count != 1)}"
    say(
        args,
        f"{count} {noun} written to {args.out}, {_PIECES[args.components]}"
        f"{_left_out(result.refused)}",
    )
    say(args, f"Next: {_after_predict(project, args)}")
    return 1 if result.refused else 0


_PIECES = {
    "auto": "pieces kept by evidence (--components auto)",
    "largest": "the largest piece of every class kept (--components largest)",
    "all": "every piece kept (--components all)",
}


def _after_predict(project: Project, args: argparse.Namespace) -> str:
    """Scores where test cases with labels were segmented; else somebody has to look."""
    scored = any(case.label for case in project.test)
    if scored and args.images is None:
        words = ["report", args.project, "--run", args.run, "--predictions", args.out]
        return shlex.join(["medssl", *map(str, words), "--out", f"{args.run}.html"])
    return "look at them and correct what is wrong, for instance in 3D Slicer"


def _left_out(cases: Sized) -> str:
    return f"; {len(cases)} left out, see the warnings" if cases else ""


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of CASE.nii.gz or .nrrd",
    )
    parser.add_argument(
        "--references",
        type=Path,
        required=True,
        metavar="DIR",
        help="labels with the same names, or CASE_seg.nii.gz and the like",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON file to write"
    )
    tolerance_option(parser)
    parser.add_argument(
        "--project",
        type=Path,
        help="take the classes of this project, and count only slices annotated there; without it, "
        "segmentations of Slicer are compared by the names of their segments",
    )
    output_options(parser, events=False)


def evaluate(args: argparse.Namespace, events: Events) -> int:
    announce(args, f"Scoring {args.predictions} against {args.references} ...")
    from MedSSLLib.cli import tables
    from MedSSLLib.evaluation.evaluate import evaluate_folder
    from MedSSLLib.project.project import Project

    known = scored_by(Project.open(args.project)) if args.project else {}
    result = evaluate_folder(
        args.predictions, args.references, args.out, args.tolerance, **known, events=events
    )
    events.emit("done", command="evaluate")  # bars stay above the results
    _warn_of_unscored(result, events)
    if not args.quiet:
        tables.print_metrics(result)
        tables.print_quality(result.get("quality"))
        tables.print_calibration(result.get("calibration"))
    say(
        args,
        f"{len(result['cases'])} cases scored, written to {args.out}{_left_out(result['errors'])}",
    )
    scores = {k: dice for k, dice in result["summary"]["dice"]["per_case"].items() if dice}
    if len(scores) > 1:
        say(args, f"Next: look at {min(scores, key=lambda k: scores[k])} first, the lowest Dice")
    return 1 if result["errors"] else 0


def _warn_of_unscored(result: dict[str, Any], events: Events) -> None:
    """Everything that the scores do not cover: cases, and values of no class."""
    for case, problem in result["errors"].items():
        events.emit("warning", message=f"not scored: {problem}", case=case)
    if unknown := result["unknown"]:
        listed = ", ".join(map(str, sorted(set().union(*unknown.values()))))
        message = f"values that are no class of the project are not scored: {listed}"
        events.emit("warning", message=f"{message} ({_first(list(unknown))})")
    for key, what in (("missing", "references"), ("extra", "predictions")):
        if names := result[key]:
            other = "prediction" if key == "missing" else "reference"
            message = f"{len(names)} {what} without a {other}: {_first(names)}"
            events.emit("warning", message=message)


def _first(names: list[str]) -> str:
    """The first five names."""
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def scored_by(project: Project) -> dict[str, Any]:
    """What a project says of its labels to those who score: classes, and which slices count."""
    return {
        "classes": project.scored,
        "annotated": {case.name: case.annotated for case in project.cases if case.annotated},
    }


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("--run", required=True, metavar="RUN", help="a finished run that segments")
    parser.add_argument(
        "--to", required=True, choices=("bundle", "torchscript", "onnx"), help="format"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="a new folder for bundle, else a file",
    )
    output_options(parser)


def export(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    project.require_run(args.run)
    announce(args, f"Writing {args.run} as {args.to} ...")
    from MedSSLLib.interop.export import run_export

    say(args, f"Written to {run_export(project, args.run, args.to, args.out, events)}")
    say(args, f"Next: {_AFTER_EXPORT[args.to].format(out=shlex.quote(str(args.out)))}")


_AFTER_EXPORT = {
    "bundle": "{out}/docs/README.md says how MONAI runs it",
    "torchscript": "load it with torch.jit.load; an extra file in it has grid and intensities",
    "onnx": "load it with onnxruntime; its metadata have grid and intensities",
}


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument(
        "--from",
        dest="file",
        type=Path,
        required=True,
        metavar="FILE",
        help="weights: .safetensors, or a file of torch.save",
    )
    parser.add_argument("--name", required=True, metavar="RUN", help="name of the run to make")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="change a setting, for instance network.widths=[32,64,128]",
    )
    output_options(parser)


def import_weights(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.cli.tables import shown_path
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    announce(args, f"Reading {args.file} ...")
    from MedSSLLib.interop.import_weights import run_import

    settings = parse_settings(args.settings)
    folder, report = run_import(project, args.file, args.name, events, settings)
    say(args, report.text())
    say(args, f"Imported {folder.name}. It is in {shown_path(folder)}")
    typed = shlex.quote(str(args.project))
    say(args, f"Next: medssl finetune {typed} --init {folder.name}")


COMMANDS = (
    Command(
        "predict",
        "Segment scans with a trained model.",
        _predict_arguments,
        predict,
        "PROJECT --run RUN --out DIR [options]",
        (
            "medssl predict heart --run finetune-1 --out segmentations/",
            "medssl predict heart --run finetune-1 --images new/case42.nii.gz --out new/seg "
            "--uncertainty",
        ),
        "Results lie on the grid of the source image. A case that cannot be segmented is named "
        f"and the others go on; the exit code is then 1. {SEL}",
    ),
    Command(
        "evaluate",
        "Compare segmentations with reference labels.",
        _evaluate_arguments,
        evaluate,
        "--predictions DIR --references DIR --out FILE [options]",
        (
            "medssl evaluate --predictions segmentations/ --references masks/ --out metrics.json",
            "medssl evaluate --predictions a/ --references b/ --out m.json --tolerance 2",
        ),
        "Dice, 95 % Hausdorff distance, mean surface distance and surface Dice in mm, volumes in "
        "ml, per "
        "case and class, with summaries; with --project also the calibration of probabilities "
        "that were written. "
        "A class absent from prediction and reference is not counted. "
        "A case that cannot be scored is named and the others go on; the exit code is then 1.",
    ),
    Command(
        "export",
        "Write a trained model for other programs.",
        _export_arguments,
        export,
        "PROJECT --run RUN --to bundle|torchscript|onnx --out PATH",
        (
            "medssl export heart --run finetune-1 --to bundle --out heart-bundle",
            "medssl export heart --run finetune-1 --to onnx --out heart.onnx",
        ),
        "A MONAI bundle runs with MONAI alone, preprocessing included. TorchScript (deprecated "
        "by PyTorch) and ONNX "
        "hold the network: preprocessed images, padded to whole strides, to probabilities; how "
        "to preprocess is in "
        "their metadata.",
    ),
    Command(
        "import",
        "Take over an encoder from another program's weights.",
        _import_arguments,
        import_weights,
        "PROJECT --from FILE --name RUN",
        (
            "medssl import heart --from dynunet.safetensors --name dynunet",
            "medssl import heart --from checkpoint_final.pth --name nnssl --set "
            "network.widths=[32,64,128]",
        ),
        "Makes a run that 'medssl finetune --init RUN' starts from, and says of every tensor "
        "whether it was taken. "
        "MONAI's DynUNet with residual blocks fits by name; of others the convolutions are taken "
        "by shape, in order.",
    ),
)
