"""Rules of advice: what suits the data, what comes next, what it takes."""

from pathlib import Path

from MedSSLLib.cli.main import build_parser
from MedSSLLib.images.labels import Annotated
from MedSSLLib.project import advice
from MedSSLLib.project.manifest import Case
from Testing.lib.case_helpers import each


def run(name, command, *, preset="quick", method="", seconds=60.0, finished=True, **length):
    config = {
        "command": command,
        "preset": preset,
        "method": method,
        "training": {"steps": 400, "minutes": None} | length,
    }
    return {
        "name": name,
        "config": {"config": config},
        "metrics": {"seconds": seconds},
        "finished": finished,
        "resumable": not finished,
    }


@each(
    "spacings, columns, method, reason",
    [
        ([], [], "pgl", "unknown"),
        ([(1.0, 1.0, 1.0)], ["phase"], "pgl", "even"),
        ([(1.6, 8.0, 1.6)], [], "gcl", "thick"),
        ([(1.0, 1.0, 2.0)], ["patient"], "pgl", "even"),
        ([(1.0, 1.0, 2.0)], ["patient", "phase"], "gcl", "metadata"),
    ],
)
def test_the_method_follows_the_spacing_and_the_metadata(spacings, columns, method, reason):
    found = advice.recommended_method(spacings, columns)
    assert (found.method, found.reason) == (method, reason)


def test_most_cases_decide():
    thin, thick = (1.0, 1.0, 1.0), (1.0, 1.0, 5.0)
    assert advice.recommended_method([thin, thin, thick]).method == "pgl"
    assert advice.recommended_method([thin, thick, thick]).ratio == 5.0


def test_memory_follows_the_largest_volume_and_disk_all_of_them():
    one, many = advice.needs([2**28]), advice.needs([2**28, 2**27, 2**27])
    assert one.memory == many.memory == advice.BASE_GIB + 3 * 1.0
    assert one.disk == 1.0 and many.disk == 2.0
    assert advice.needs([]).memory == advice.BASE_GIB


def test_the_time_of_a_run_of_another_kind_or_length_says_nothing():
    runs = [
        run("a", "pretrain", method="gcl", seconds=10.0),
        run("b", "finetune", method="supervised", seconds=20.0),
        run("c", "pretrain", method="pgl", seconds=30.0),
        run("d", "pretrain", method="gcl", seconds=40.0, minutes=1.0),
        run("e", "pretrain", method="gcl", seconds=50.0, preset="paper", steps=30000),
        run("f", "pretrain", method="gcl", seconds=60.0, steps=4),
    ]
    assert advice.seconds_before(runs, "pretrain", "quick", "gcl") == 10.0
    assert advice.seconds_before(runs[:-2], "pretrain", "paper", "gcl") is None
    assert advice.seconds_before(runs, "pretrain", "paper", "gcl") == 50.0


def test_models_encoders_and_unfinished_runs():
    runs = [
        run("p", "pretrain"),
        run("f", "finetune"),
        run("s", "selftrain", finished=False),
        {**run("x", "finetune"), "config": None},
        run("l", "live"),
    ]
    assert advice.models(runs) == ["f", "l"] and advice.encoders(runs) == ["p"]
    assert advice.unfinished(runs, ("finetune", "selftrain"))["name"] == "s"
    assert advice.unfinished(runs, ("pretrain",)) is None


@each(
    "changed, little",
    [
        ([0.01] * 4, False),
        ([0.01] * 5, True),
        ([0.9] + [0.01] * 5, True),
        ([0.05] * 5, True),
        ([0.0, 0.0, 0.0, 0.0, 0.3], False),
    ],
)
def test_drawing_pays_little_once_the_last_five_slices_needed_little(changed, little):
    assert advice.drawing_pays_little(changed) is little


def test_the_next_step():
    plain = Case("a", (Path("a.nii"),))
    drawn = Case("b", (Path("b.nii"),), Path("l.nii"), Annotated.of([(2, [1])]), "labelled")
    empty = Case("c", (Path("c.nii"),), Path("l.nii"), Annotated(()), "labelled")
    steps = [
        advice.next_step([], []),
        advice.next_step([plain, empty], []),
        advice.next_step([plain], [run("p", "pretrain")]),
        advice.next_step([plain, drawn], [run("p", "pretrain")]),
        advice.next_step([plain, drawn], [run("f", "finetune")]),
    ]
    few = [plain, Case("d", plain.images), drawn]
    trained = [run("f", "finetune")]
    steps += [
        advice.next_step(few, trained),
        advice.next_step(few, [*trained, run("s", "selftrain")]),
        advice.next_step(few, [*trained, run("s", "selftrain"), run("g", "finetune")]),
        advice.next_step([plain, Case("d", plain.images, role="test"), drawn], trained),
    ]
    assert steps[:5] == ["add", "annotate", "annotate", "finetune", "predict"]
    assert steps[5:] == ["selftrain", "predict", "selftrain", "predict"]
    assert set(steps) <= set(advice.NEXT_LINES)


@each("line", advice.NEXT_LINES.values())
def test_the_lines_are_commands(line):
    arguments = line.removeprefix("medssl ").replace("...", "").split()
    assert build_parser().parse_args(arguments).command == arguments[0]
