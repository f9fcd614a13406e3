"""``pretrain``, ``finetune``, ``selftrain``: the commands that train."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedSSLLib.cli.command import (
    SEL,
    Command,
    announce,
    method,
    parse_settings,
    positive,
    say,
    training_options,
)
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.methods import METHODS

if TYPE_CHECKING:
    from MedSSLLib.config.run import RunConfig
    from MedSSLLib.project.project import Project


SETTING_OF = {
    "name": "name",
    "dim": "dim",
    "device": "device",
    "devices": "devices",
    "precision": "precision",
    "seed": "seed",
    "steps": "training.steps",
    "minutes": "training.minutes",
    "batch": "training.batch",
    "init": "init",
    "annotated_slices": "annotated_slices",
    "semi": "semi",
    "mixup": "mixup",
    "start": "options.start",
    "rounds": "options.rounds",
    "matching": "options.matching",
    "filter": "options.filter",
    "clean": "options.clean",
    "weight": "options.weight",
}
"""The setting of each option: of the command line, and as an argument in Python."""

TYPED = {
    "command": "Type another command",
    "method": "Use pretrain --method",
    "preset": "Use --preset",
    "resume": "Use --resume",
}
"""Settings that ``--set`` does not change, and what does."""


def _pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument(
        "--method",
        type=method,
        default="auto",
        metavar="METHOD|FILE.py:CLASS",
        help=f"what to learn from unlabelled scans: auto (default: what suits the data), "
        f"{', '.join(METHODS)}, one of another package, or your own (see 'medssl new-method')",
    )
    parser.add_argument(
        "--meta", metavar="A,B", help="what makes slices alike (gcl): position, patient, phase ..."
    )
    training_options(parser)


def pretrain(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    announce(args, f"Pre-training on the scans of {args.project} ...")
    chosen = _chosen_method(args, project)
    from MedSSLLib.methods import outside

    name = outside.named(chosen)
    extra: dict[str, Any] = {}
    if args.meta is not None:
        if name != "gcl":
            raise InputError(
                f"--meta is for --method gcl; {name} learns without meta labels",
                remedy="Leave --meta out",
            )
        extra["options.meta"] = [name.strip() for name in args.meta.split(",") if name.strip()]
    config = configuration(args, name, extra)
    warn_of_unused(config, given_by(args, extra), project, events)
    from MedSSLLib.pretraining.pretrain import run_pretrain

    _say_trained(args, project, run_pretrain(project, config, events))


def _chosen_method(args: argparse.Namespace, project: Project) -> str:
    """The method that was typed, that of the run to go on with, or what suits the data."""
    if args.method != "auto":
        return str(args.method)
    if args.resume:
        from MedSSLLib.config.run import RunConfig
        from MedSSLLib.training.run_folder import resumable

        wanted = RunConfig.build("pretrain", overrides={"name": args.name} if args.name else {})
        return resumable(project, wanted).config.method
    if args.meta is not None:
        return "gcl"
    from MedSSLLib.project.next_step import recommended

    method, why = recommended(project)
    say(args, f"Method: {method}, {why} (--method takes another)")
    return method


def _say_trained(args: argparse.Namespace, project: Project, folder: Path) -> None:
    """What came of a training, and what comes next."""
    from MedSSLLib.cli.tables import shown_path, trained_words
    from MedSSLLib.core.files import read_json
    from MedSSLLib.project.next_step import next_line

    metrics = read_json(folder / "metrics.json")
    where = shown_path(folder)
    say(args, f"Trained {folder.name}: {trained_words(args.command, metrics)}. It is in {where}")
    if args.command != "complete":
        say(args, next_line(project, args.project, after=args.command, run=folder.name))


def _finetune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument(
        "--init", metavar="RUN|FILE|none", help="pre-trained weights to start from (default: none)"
    )
    _label_arguments(parser)
    parser.add_argument("--freeze-encoder", action="store_true", help="train the decoder only")
    training_options(parser)


def _label_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labelled", metavar="SEL", help="the only cases whose labels may be read")
    parser.add_argument(
        "--annotated-slices",
        type=positive(int),
        metavar="N",
        help="use only N slices of each label, evenly spaced",
    )
    parser.add_argument(
        "--semi",
        choices=("none", "mean-teacher", "mixing"),
        help="also learn from unlabelled scans (default: none)",
    )
    parser.add_argument(
        "--mixup", type=float, metavar="A", help="mix pairs of samples, weights Beta(A, A); 0 = off"
    )


def finetune(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    announce(args, f"Fine-tuning on the labels of {args.project} ...")
    check_start(project, args.init)
    extra: dict[str, Any] = {"freeze_encoder": True} if args.freeze_encoder else {}
    extra |= _labelled(args, project)
    config = configuration(args, "supervised", extra)
    warn_of_unused(config, given_by(args, extra), project, events)
    from MedSSLLib.finetuning.finetune import run_finetune

    _say_trained(args, project, run_finetune(project, config, events))


def check_start(project: Project, start: str | None) -> None:
    """Raise InputError, with a similar name, for a start that is neither a run, a file nor none."""
    if start and start != "none" and not Path(start).exists():
        project.require_run(start)


def _selftrain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--from", dest="start", metavar="RUN", help="a finished finetune run to improve"
    )
    start.add_argument(
        "--init", metavar="RUN|none", help="or train the first model here, from pre-trained weights"
    )
    _label_arguments(parser)
    parser.add_argument(
        "--rounds",
        type=positive(int),
        metavar="N",
        help="rounds of pseudo-labels (default: 5; 2 with --preset quick, 3 with contrast)",
    )
    parser.add_argument(
        "--matching",
        choices=("inter", "intra"),
        help="contrast between images (default) or views of one image",
    )
    parser.add_argument(
        "--lambda",
        dest="weight",
        type=float,
        metavar="W",
        help="weight of the contrast (default: 0)",
    )
    parser.add_argument(
        "--filter",
        choices=("none", "consistency", "confidence"),
        help="which pseudo-labels are used (default: all)",
    )
    parser.add_argument(
        "--clean",
        choices=("none", "components", "crf"),
        help="fill small holes; of what labels show in one piece keep the piece with the most "
        "evidence, its size times how sure: others with half of it teach nothing, the rest is "
        "background (components, default); crf smooths along edges first",
    )
    parser.add_argument(
        "--accept", metavar="SEL", help="always use these; with --from, as they are in that run"
    )
    parser.add_argument(
        "--reject", metavar="SEL", help="never use the pseudo-labels of these cases"
    )
    training_options(parser)


def selftrain(args: argparse.Namespace, events: Events) -> None:
    from MedSSLLib.project.project import Project

    project = Project.open(args.project)
    announce(args, f"Self-training on the scans of {args.project} ...")
    if not (args.start or args.init or args.resume):
        raise InputError(
            "selftrain needs a start", remedy="Give --from RUN, or --init RUN, or --init none"
        )
    check_start(project, args.init)
    if args.start:
        project.require_run(args.start)
    extra: dict[str, Any] = {}
    for name in ("accept", "reject"):
        text = getattr(args, name)
        if text is not None:
            extra[f"options.{name}"] = tuple(case.name for case in project.select(text))
    extra |= _labelled(args, project)
    config = configuration(args, "local-contrast", extra)
    warn_of_unused(config, given_by(args, extra), project, events)
    from MedSSLLib.selftraining.selftrain import run_selftrain

    _say_trained(args, project, run_selftrain(project, config, events))


def configuration(args: argparse.Namespace, method: str, extra: dict[str, Any]) -> RunConfig:
    """The run configuration of parsed options: preset, then options, then ``--set``.

    Raises:
        InputError: a setting that does not exist, does not fit, or is given as an option and by
            --set.
    """
    from MedSSLLib.methods.options import configured

    return configured(
        args.command,
        preset=args.preset,
        method=method,
        overrides=given_by(args, extra) | {"resume": args.resume},
    )


def given_by(args: argparse.Namespace, extra: dict[str, Any]) -> dict[str, Any]:
    """What was typed, as options or by ``--set``, by dotted key.

    Raises:
        InputError: as `merged_settings` does.
    """
    options = {key: getattr(args, option, None) for option, key in SETTING_OF.items()}
    return merged_settings(options | extra, parse_settings(args.settings))


def merged_settings(options: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options, None where they are not given, and further settings, both by dotted key.

    Raises:
        InputError: a setting that decides which settings there are, or one that is an option too.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if fixed := settings.keys() & set(TYPED):
        key = sorted(fixed)[0]
        raise InputError(
            f"{key!r} cannot be set, it decides which settings there are", remedy=TYPED[key]
        )
    if twice := settings.keys() & given.keys():
        raise InputError(
            f"{sorted(twice)[0]!r} is given as an option and by --set", remedy="Keep one of them"
        )
    return given | dict(settings)


def warn_of_unused(
    config: RunConfig, given: Mapping[str, Any], project: Project, events: Events
) -> None:
    """Say which of the settings given with ``--resume`` are not those that the run goes on with.

    Raises:
        InputError: there is nothing to resume.
    """
    if not config.resume:
        return
    from MedSSLLib.cli.tables import setting_rows
    from MedSSLLib.config.run import as_begun
    from MedSSLLib.methods.options import own_options
    from MedSSLLib.training.run_folder import resumable

    run = resumable(project, config)
    stored = as_begun(run.config)
    given = {key: value for key, value in given.items() if key not in ("name", "device")}
    if given.get("precision") == run.precision:
        given.pop("precision", None)

    def values(settings: RunConfig) -> dict[str, str]:
        own = own_options(settings.command, settings.method, settings.options)
        rows = [*setting_rows(settings), *setting_rows(own, "options.")]
        return {row[0]: row[1] for row in rows}

    have, asked = values(stored), values(stored.override(given))
    if stored.training.minutes:
        have["training.steps"] = f"{stored.training.minutes:g} minutes"
    if config.preset not in ("standard", stored.preset):  # the default is not asked for
        given, asked["preset"] = given | {"preset": config.preset}, config.preset
    unused = [
        f"{key} {asked[key]} (it has {have[key]})"
        for key in given
        if asked.get(key) != have.get(key)
    ]
    if unused:
        what = ", ".join(unused)
        events.emit(
            "warning", message=f"Run {run.name} goes on with its own settings. Not used: {what}."
        )


def _labelled(args: argparse.Namespace, project: Project) -> dict[str, tuple[str, ...]]:
    if args.labelled is None:
        return {}
    return {"labelled": tuple(case.name for case in project.select(args.labelled))}


COMMANDS = (
    Command(
        "pretrain",
        "Learn from unlabelled scans.",
        _pretrain_arguments,
        pretrain,
        "PROJECT [--method METHOD] [options]",
        (
            "medssl pretrain heart --minutes 30",
            "medssl pretrain heart --method gcl --minutes 30",
            "medssl pretrain heart --method pgl --dim 3d --name pgl-a --set optimiser.lr=1e-3",
            "medssl pretrain heart --method pgl --name pgl-a --resume",
            "medssl pretrain heart --method mine.py:Mine --minutes 10",
        ),
        "Reads the images of all cases but the test cases, and no label. The result is an "
        "encoder that 'medssl finetune --init RUN' starts from. Optional: in our measurements it "
        "helped when training was short and with two labelled hearts, and hardly when "
        "self-training followed.",
    ),
    Command(
        "finetune",
        "Train a segmentation model on labelled scans or slices.",
        _finetune_arguments,
        finetune,
        "PROJECT [options]",
        (
            "medssl finetune heart --init pgl-a --minutes 10",
            "medssl finetune heart --labelled case03,case17 --annotated-slices 3",
            "medssl finetune heart --preset quick --device cpu --events - > events.jsonl",
        ),
        SEL,
    ),
    Command(
        "selftrain",
        "Improve a model with its own predictions on unlabelled scans.",
        _selftrain_arguments,
        selftrain,
        "PROJECT (--from RUN | --init RUN|none) [options]",
        (
            "medssl selftrain heart --from finetune-1 --minutes 20",
            "medssl selftrain heart --init pgl-a --labelled case03 --rounds 2",
            "medssl selftrain heart --from selftrain-1 --accept case05,case09 --reject case11",
        ),
        "Rounds of pseudo-labels and of training on labelled images mixed with pseudo-labelled "
        "ones; --set options.recipe=contrast trains with the local contrastive loss, as published. "
        "Every round writes the pseudo-labels it learns from, with their confidence, to pseudo/ in "
        "the run folder. Look at them, correct them if you like, and go on with --from RUN "
        f"--accept SEL --reject SEL. {SEL}",
    ),
)
