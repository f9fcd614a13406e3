"""The command line: names that scripts depend on, exit codes, streams, signals, project
commands.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from MedSSLLib.cli import command, train
from MedSSLLib.cli import main as cli
from MedSSLLib.cli.main import main
from MedSSLLib.config import run
from MedSSLLib.core.errors import CancelledError, GuardError, InputError, MedSSLError
from MedSSLLib.core.events import read_events
from Testing.lib.case_helpers import each

ROOT = Path(__file__).parents[3]
COMMANDS = {command.name: command for _, group in cli.GROUPS for command in group}
COMMON = {
    "--name",
    "--preset",
    "--dim",
    "--steps",
    "--minutes",
    "--device",
    "--devices",
    "--precision",
    "--batch",
    "--seed",
    "--set",
    "--resume",
    "--events",
    "--quiet",
    "--debug",
}
CONTRACT = {
    "init": {"--images", "--labels", "--metadata", "--labelled", "--test"},
    "add": set(),
    "status": set(),
    "runs": {"--json"},
    "show": set(),
    "pretrain": {"--method", "--meta"} | COMMON,
    "finetune": {
        "--init",
        "--labelled",
        "--annotated-slices",
        "--freeze-encoder",
        "--semi",
        "--mixup",
    }
    | COMMON,
    "selftrain": {
        "--from",
        "--init",
        "--labelled",
        "--annotated-slices",
        "--rounds",
        "--matching",
        "--filter",
        "--clean",
        "--lambda",
        "--accept",
        "--reject",
        "--semi",
        "--mixup",
    }
    | COMMON,
    "complete": {"--case", "--init", "--annotated-slices", "--out"} | COMMON,
    "suggest": {
        "--budget",
        "--run",
        "--strategy",
        "--per-case",
        "--seed",
        "--out",
        "--json",
        "--events",
    },
    "predict": {"--run", "--cases", "--images", "--out", "--probabilities", "--uncertainty"},
    "evaluate": {"--predictions", "--references", "--out", "--tolerance"},
    "export": {"--run", "--to", "--out"},
    "import": {"--from", "--name"},
    "benchmark": set(),
    "report": {"--run", "--out"},
    "demo": {"--data", "--budget", "--out"},
    "doctor": set(),
}


def run_medssl(*args: str, **options) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", "MedSSLLib", *args],
        capture_output=True,
        encoding="utf-8",
        env=env,
        timeout=120,
        **options,
    )


@pytest.fixture
def scans(tmp_path) -> Path:
    """Three images with labels, one named to be mistaken for markup, and one file that is no
    image.
    """
    random = np.random.default_rng(0)
    for name in ("a", "b", "[red]c"):
        image = sitk.GetImageFromArray(random.normal(size=(6, 10, 12)).astype(np.float32))
        image.SetSpacing((1.0, 1.5, 5.0))
        label = sitk.GetImageFromArray((random.random((6, 10, 12)) > 0.7).astype(np.uint8))
        label.CopyInformation(image)
        for folder, content in (("images", image), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            sitk.WriteImage(content, str(tmp_path / folder / f"{name}.nii.gz"))
    (tmp_path / "images" / "broken.nii.gz").write_bytes(b"not an image")
    return tmp_path


@pytest.fixture
def project(scans) -> Path:
    folder = scans / "project"
    images, labels = str(scans / "images"), str(scans / "labels")
    assert (
        main(
            [
                "init",
                str(folder),
                "--images",
                images,
                "--labels",
                labels,
                "--labelled",
                "a",
                "--test",
                "b",
            ]
        )
        == 1
    )
    return folder


# ------------------------------------------------------------------------------------------------
# parsing


@each("command", CONTRACT)
def test_every_option_of_the_contract_exists(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    words = set(text.replace(",", " ").replace("[", " ").split())
    assert words >= CONTRACT[command]
    assert text.startswith(f"usage: medssl {command} ") and "examples:" in text


def test_benchmark_labels_has_the_options_of_the_contract(capsys):
    assert main(["benchmark", "labels", "--help"]) == 0
    text = capsys.readouterr().out
    words = set(text.replace(",", " ").replace("[", " ").replace("]", " ").split())
    assert words >= {"--data", "--counts", "--choices", "--methods", "--minutes-per-run", "--out"}
    assert text.startswith("usage: medssl benchmark labels ")


def test_help_lists_every_command_and_no_other(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    listed = [
        line.split()[0]
        for line in text.splitlines()
        if line.startswith("  ") and line[2:3].isalpha()
    ]
    assert [name for name in listed if name != "medssl"] == list(COMMANDS)


def test_examples_in_the_help_are_accepted_by_the_parser():
    import shlex

    for spec in COMMANDS.values():
        for line in spec.examples:
            words = shlex.split(line.split(" > ")[0])
            assert cli.build_parser().parse_args(words[1:]).command == spec.name


def test_choices_agree_with_the_configuration():
    options = {action.dest: action.choices for action in _actions("finetune") if action.choices}
    fields = run.RunConfig.model_fields
    for name in ("preset", "dim", "precision", "semi"):
        assert set(options[name]) == set(fields[name].annotation.__args__), name
    for key in train.SETTING_OF.values():
        assert key.split(".")[0] == "options" or key in run.setting_names()


def _actions(name: str) -> list:
    parser = argparse.ArgumentParser()
    COMMANDS[name].arguments(parser)
    return parser._actions


@each(
    "argv",
    [
        ["nonsense"],
        ["finetune"],
        ["finetune", "p", "--steps", "0"],
        ["finetune", "p", "--minutes", "nan"],
        ["finetune", "p", "--steps", "5", "--minutes", "1"],
        ["pretrain", "p", "--method", "none"],
        ["finetune", "p", "--prese", "quick"],
        ["predict", "p", "--run", "r", "--out", "o", "--cases", "", "--images", "b"],
    ],
)
def test_wrong_usage_is_exit_code_2_with_one_reason(argv, capsys):
    assert main(argv) == 2
    output = capsys.readouterr()
    assert "error: " in output.err and "Traceback" not in output.err and not output.out


@each(
    "command",
    [
        "suggest p --budget 3",
        "demo",
        "benchmark labels --data d --out o",
        "pretrain p",
        "finetune p",
        "selftrain p",
        "complete p",
    ],
)
@each("seed", ["-1", "1.5", "x", str(2**63), "²"])
def test_a_seed_that_no_generator_takes_is_wrong_usage(command, seed, capsys):
    assert main([*command.split(), "--seed", seed]) == 2
    assert "argument --seed: " in (text := capsys.readouterr().err) and "Unexpected" not in text


@pytest.mark.parametrize("seed", ["0", str(2**63 - 1)])
def test_any_other_seed_is_taken(seed):
    args = cli.build_parser().parse_args(["finetune", "p", "--seed", seed])
    assert train.configuration(args, "supervised", {}).seed == int(seed)


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "medssl --help" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- options ->
# configuration


def test_options_of_self_training_reach_its_own_settings():
    from MedSSLLib.selftraining.selftrain import self_train_options

    words = [
        "selftrain",
        "p",
        "--from",
        "first",
        "--rounds",
        "2",
        "--matching",
        "intra",
        "--set",
        "options.weight=0.3",
    ]
    args = cli.build_parser().parse_args(words)
    options = self_train_options(train.configuration(args, "local-contrast", {}))
    assert (options.start, options.rounds, options.matching, options.weight) == (
        "first",
        2,
        "intra",
        0.3,
    )


def test_self_training_needs_a_start(project, capsys):
    assert main(["selftrain", str(project)]) == 2
    assert "--from" in capsys.readouterr().err


def _configuration(*argv: str) -> run.RunConfig:
    args = cli.build_parser().parse_args(["finetune", "p", *argv])
    return train.configuration(args, "supervised", {})


def test_options_reach_the_configuration_and_set_wins_over_the_preset():
    made = _configuration(
        "--preset",
        "quick",
        "--steps",
        "7",
        "--batch",
        "3",
        "--seed",
        "5",
        "--device",
        "cpu",
        "--dim",
        "2d",
        "--set",
        "optimiser.lr=1e-4",
        "--set",
        "network.widths=[8, 16]",
        "--name",
        "r",
        "--init",
        "other",
    )
    assert (made.training.steps, made.training.batch, made.seed, made.device, made.dim) == (
        7,
        3,
        5,
        "cpu",
        "2d",
    )
    assert (made.optimiser.lr, made.network.widths, made.name, made.init) == (
        1e-4,
        (8, 16),
        "r",
        "other",
    )
    assert made.preset == "quick" and made.command == "finetune"


def test_flags_of_self_training_reach_its_options(project, monkeypatch):
    got = {}
    folder = project / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"steps": 3, "seconds": 2.0}')

    def work(project, made, events):
        got["made"] = made
        return folder

    worker = SimpleNamespace(run_selftrain=work)
    monkeypatch.setitem(sys.modules, "MedSSLLib.selftraining.selftrain", worker)
    words = [
        "--from",
        "r",
        "--rounds",
        "2",
        "--filter",
        "confidence",
        "--clean",
        "none",
        "--lambda",
        "0.5",
        "--accept",
        "a",
        "--reject",
        "[red]c",
        "--set",
        "options.threshold=0.7",
        "--mixup",
        "0.2",
        "--annotated-slices",
        "3",
    ]
    assert main(["selftrain", str(project), *words]) == 0
    made = got["made"]
    assert made.options == {
        "start": "r",
        "rounds": 2,
        "filter": "confidence",
        "clean": "none",
        "weight": 0.5,
        "accept": ("a",),
        "reject": ("[red]c",),
        "threshold": "0.7",
    }
    assert (made.method, made.mixup, made.annotated_slices) == ("local-contrast", 0.2, 3)
    assert main(["selftrain", str(project), "--init", "none", "--accept", "nobody"]) == 2


def test_what_is_not_given_keeps_the_default():
    assert _configuration() == run.RunConfig.build("finetune")


@each(
    "argv",
    [
        ("--set", "optimiser.lr"),
        ("--set", "=1"),
        ("--set", "seed=1", "--seed", "2"),
        ("--set", "optimiser.lrr=1"),
        ("--set", "seed=1", "--set", "seed=2"),
        ("--set", "optimiser.lr=fast"),
    ],
)
def test_bad_settings_are_input_errors(argv):
    with pytest.raises(InputError) as caught:
        _configuration(*argv)
    assert caught.value.remedy


# ------------------------------------------------------------------------------------ exit codes,
# errors


def _raising(error: BaseException, monkeypatch) -> None:
    def work(args, events):
        raise error

    changed = [command.Command("doctor", "h", COMMANDS["finetune"].arguments, work, "", ())]
    monkeypatch.setattr(cli, "GROUPS", (("g", changed),))


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@each(
    ("error", "code", "word"),
    [
        (MedSSLError("m"), 1, "m"),
        (InputError("found", remedy="Do it."), 2, "Do it."),
        (CancelledError("c"), 3, "c"),
        (KeyboardInterrupt(), 3, "Cancelled"),
        (GuardError("g"), 4, "g"),
        (MemoryError(), 4, "memory"),
        (OutOfMemoryError("CUDA"), 4, "--batch"),
        (OSError(28, "No space left", "f"), 1, "disk is full"),
        (PermissionError(13, "Permission denied", "f"), 1, "f: Permission denied"),
        (ZeroDivisionError("z"), 1, "--debug"),
        (ModuleNotFoundError("x", name="monai"), 1, '-m pip install "monai>='),
    ],
)
def test_errors_become_exit_codes_and_one_message(error, code, word, monkeypatch, capsys):
    _raising(error, monkeypatch)
    assert main(["doctor", "p"]) == code
    output = capsys.readouterr()
    assert word in output.err and "Traceback" not in output.err and not output.out


def test_debug_shows_the_traceback_and_keeps_the_code(monkeypatch, capsys):
    _raising(InputError("found"), monkeypatch)
    assert main(["doctor", "p", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_failure_is_also_an_event(monkeypatch, tmp_path):
    _raising(InputError("found", case="a"), monkeypatch)
    file = tmp_path / "e.jsonl"
    assert main(["doctor", "p", "--events", str(file)]) == 2
    (event,) = read_events(file)
    assert (event["event"], event["exit_code"], event["message"]) == ("error", 2, "a: found.")
    assert event["where"].startswith("test_main.py:")


def test_control_characters_in_an_error_are_escaped(monkeypatch, capsys):
    _raising(MedSSLError("bad \x1b[31m name"), monkeypatch)
    main(["doctor", "p"])
    assert "\x1b" not in capsys.readouterr().err


def test_an_events_file_that_cannot_be_written_is_bad_input(tmp_path, capsys):
    assert main(["finetune", str(tmp_path), "--events", str(tmp_path / "absent" / "e.jsonl")]) == 2
    assert "--events" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------
# streams

_PRINTING = """
import os, subprocess, sys
from MedSSLLib.cli import main as cli
from MedSSLLib.cli.command import Command
def work(args, events):
    events.emit("start", run="r")
    print("from python")
    os.write(1, b"from a library\\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"])
    events.emit("metric", value=1)
arguments = next(c for c in cli.train.COMMANDS if c.name == "finetune").arguments
cli.GROUPS = (("g", [Command("finetune", "h", arguments, work, "", ())]),)
sys.exit(cli.main(["finetune", "p", *sys.argv[1:]]))
"""


def _printing(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", _PRINTING, *args],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        **options,
    )


def test_stdout_holds_nothing_but_events_when_events_go_there():
    done = _printing("--events", "-")
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == [
        "start",
        "metric",
        "done",
    ]
    assert all(f"from {who}" in done.stderr for who in ("python", "a library", "a child"))


def test_without_events_stdout_is_as_usual_and_progress_goes_to_stderr():
    done = _printing()
    assert (
        "from python" in done.stdout
        and "metric: value 1" in done.stderr
        and "start" not in done.stdout
    )


def test_quiet_leaves_stderr_empty():
    assert _printing("--quiet").stderr == ""


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK"])
def test_only_the_first_process_of_a_parallel_run_speaks(rank):
    done = _printing("--events", "-", env=os.environ | {rank: "1"})
    assert '"event"' not in done.stdout and "start" not in done.stderr


def test_events_survive_an_ascii_locale():
    env = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = _printing("--events", "-", env=env)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_no_traceback(project):
    command = f'"{sys.executable}" -m MedSSLLib runs "{project}" --json | true'
    done = subprocess.run(command, shell=True, capture_output=True, encoding="utf-8", cwd=ROOT)  # noqa: S602
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


# ------------------------------------------------------------------------------------------------
# signals

_WAITING = """
import sys, time
from MedSSLLib.cli import main as cli
from MedSSLLib.core import interrupts
from MedSSLLib.cli.command import Command
from MedSSLLib.core.errors import CancelledError
def work(args, events):
    if "loop" in sys.argv:
        with interrupts.deferred():
            print("ready", flush=True)
            while not interrupts.requested():
                time.sleep(0.01)
            print("saved", flush=True)
            raise CancelledError("stopped in good order")
    print("ready", flush=True)
    time.sleep(60)
arguments = next(c for c in cli.train.COMMANDS if c.name == "finetune").arguments
cli.GROUPS = (("g", [Command("finetune", "h", arguments, work, "", ())]),)
sys.exit(cli.main(["finetune", "p"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
@each("number", [signal.SIGTERM, signal.SIGINT])
@each("place", ["loop", "elsewhere"])
def test_a_signal_stops_a_loop_in_good_order_and_anything_else_at_once(number, place):
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING, place],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=ROOT,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3 and "Traceback" not in err and time.monotonic() - started < 10
    assert ("saved" in out and "good order" in err) if place == "loop" else "Cancelled." in err


# ---------------------------------------------------------------------------------------- project
# commands


def test_init_lists_what_it_leaves_out_and_goes_on(scans, capsys):
    assert main(["init", str(scans / "p"), "--images", str(scans / "images")]) == 1
    output = capsys.readouterr()
    assert "3 cases (3 unlabelled); 1 left out" in output.out
    assert "left out" in output.err and "broken" in output.err


def test_init_takes_modality_class_names_and_copies(scans, capsys):
    images, labels = str(scans / "images"), str(scans / "labels")
    words = ["--modality", "CT", "--classes", "1=left part", "--copy"]
    (scans / "images" / "broken.nii.gz").unlink()
    assert main(["init", str(scans / "p"), "--images", images, "--labels", labels, *words]) == 0
    capsys.readouterr()
    assert main(["status", str(scans / "p"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["modality"] == ["CT"] and facts["labels"] == {"0": "background", "1": "left part"}
    assert all(
        Path(row["image"]).is_relative_to(scans / "p") and not row["problem"]
        for row in facts["cases"]
    )


@each("classes", ["liver", "x=liver", "1=", "1=a,,2=b", "1=a,1=b", "1=a,2=a"])
def test_class_names_that_cannot_be_read_are_bad_input(classes, scans, capsys):
    assert (
        main(["init", str(scans / "p"), "--images", str(scans / "images"), "--classes", classes])
        == 2
    )
    said = capsys.readouterr().err
    assert "--classes" in said or "twice" in said
    assert not (scans / "p").exists()


def test_values_that_the_labels_have_and_classes_does_not_name_are_bad_input(scans, capsys):
    words = [
        "init",
        str(scans / "p"),
        "--images",
        str(scans / "images"),
        "--labels",
        str(scans / "labels"),
    ]
    assert main([*words, "--classes", "2=tumour"]) == 2
    assert (
        "does not name the values 1, which the labels have. Add 1=class_1"
        in capsys.readouterr().err
    )
    assert not (scans / "p").exists()
    assert main([*words, "--classes", "1=liver,2=tumour"]) == 1  # of the four images one is broken


def test_init_without_a_usable_image_is_bad_input(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    assert main(["init", str(tmp_path / "p"), "--images", str(tmp_path / "images")]) == 2
    assert not (tmp_path / "p" / "medssl.json").exists()


def test_status_shows_cases_literally(project, capsys):
    capsys.readouterr()
    assert main(["status", str(project)]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "[red]c" in line)
    assert (
        "12 x 10 x 6" in row and "1 x 1.5 x 5" in row and "not read" in row and "unlabelled" in row
    )
    assert "1 labelled, 1 unlabelled, 1 test" in text


def test_status_names_an_image_that_has_vanished(project, scans, capsys):
    (scans / "images" / "b.nii.gz").unlink()
    capsys.readouterr()
    assert main(["status", str(project), "--json"]) == 0
    cases = {row["case"]: row for row in json.loads(capsys.readouterr().out)["cases"]}
    assert "b.nii.gz" in cases["b"]["problem"] and cases["a"]["size"] == [12, 10, 6]


def test_add_takes_new_images_only(project, scans, capsys):
    (scans / "more").mkdir()
    (scans / "images" / "a.nii.gz").rename(scans / "more" / "z.nii.gz")
    assert main(["add", str(project), str(scans / "more")]) == 0
    assert "1 new; in all 4 cases" in capsys.readouterr().out
    (scans / "labels" / "a.nii.gz").rename(scans / "more" / "y.nii.gz")
    assert main(["add", str(project), str(scans / "more")]) == 0
    assert (
        "1 new, 1 was there already; in all 5 cases (1 labelled, 3 unlabelled, 1 test)."
        in capsys.readouterr().out
    )


def test_add_takes_labels_of_scans_that_are_there(project, scans, capsys):
    (scans / "drawn").mkdir()
    (scans / "labels" / "a.nii.gz").rename(scans / "drawn" / "[red]c.nii.gz")
    assert main(["add", str(project), "--labels", str(scans / "drawn")]) == 0
    assert "1 label; in all 3 cases (2 labelled, 1 test)" in capsys.readouterr().out
    assert main(["add", str(project)]) == 2
    assert "nothing to add" in capsys.readouterr().err


@each(
    "command", [["status"], ["runs"], ["add", "x"], ["finetune"], ["pretrain", "--method", "byol"]]
)
def test_a_folder_without_project_is_bad_input(command, tmp_path, capsys):
    name, *rest = command
    assert main([name, str(tmp_path), *rest]) == 2
    assert "medssl init" in capsys.readouterr().err


def test_runs_and_show_tell_what_a_run_folder_holds(project, capsys):
    run = project / "runs" / "first"
    run.mkdir(parents=True)
    facts = {
        "config": {
            "command": "finetune",
            "method": "supervised",
            "init": "none",
            "optimiser": {"lr": 0.5},
        }
    }
    (run / "config.json").write_text(json.dumps(facts))
    (run / "metrics.json").write_text(json.dumps({"summary": {"dice": {"mean": 0.81234}}}))
    capsys.readouterr()
    assert main(["runs", str(project), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["command"], row["dice"]) == ("first", "finetune", 0.81234)
    assert main(["show", str(project), "first"]) == 0
    text = capsys.readouterr().out
    assert "optimiser.lr" in text and "0.5" in text and "0.812" in text and "config.json" in text
    assert text.splitlines()[-1].startswith("Next: medssl ")


def test_runs_and_show_say_the_start_the_number_format_and_the_rounds(project, capsys):
    run = project / "runs" / "better"
    run.mkdir(parents=True)
    settings = {
        "command": "selftrain",
        "method": "local-contrast",
        "init": "none",
        "preset": "standard",
        "precision": "auto",
        "options": {"start": "first"},
    }
    (run / "config.json").write_text(json.dumps({"config": settings, "precision": "bf16"}))
    summary = {"cases": {"b": {"voxels": {"x": 7}}, "c": {"voxels": {"x": 8}}}, "kept": ["c"]}
    rounds = [
        {"round": 1, "pseudo": summary, "dice": 0.81234, "steps": 12, "seconds": 3.4},
        {"round": 2, "pseudo": summary, "dice": None, "steps": 13, "seconds": 3.5},
    ]
    (run / "metrics.json").write_text(json.dumps({"rounds": rounds, "steps": 25}))
    capsys.readouterr()
    assert main(["runs", str(project)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "better" in line]
    assert "first" in line and "none" not in line
    assert main(["show", str(project), "better"]) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "options.start first" in lines and "number format bf16" in lines and "{" not in text
    assert "round 1 1 of 2 pseudo-labels used, 12 steps in 3.4 s, validation Dice 0.812" in lines
    assert "round 2 1 of 2 pseudo-labels used, 13 steps in 3.5 s" in lines


@each("name", ["absent", "../..", "/"])
def test_show_stays_inside_the_project(project, name, capsys):
    assert main(["show", str(project), name]) == 2


def test_evaluate_scores_and_names_what_it_could_not_score(scans, tmp_path, capsys):
    (scans / "labels" / "bad.nii.gz").write_bytes(b"x")
    out = tmp_path / "m.json"
    argv = [
        "evaluate",
        "--predictions",
        str(scans / "labels"),
        "--references",
        str(scans / "labels"),
        "--out",
        str(out),
    ]
    assert main(argv) == 1
    output = capsys.readouterr()
    assert "3 cases scored" in output.out and "1 left out" in output.out and "bad" in output.err
    assert "evaluate 4/4" in output.err
    assert json.loads(out.read_text())["summary"]["dice"]["mean"] == 1.0


def test_settings_lists_every_key_with_its_default(capsys):
    assert main(["settings", "finetune", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["optimiser.lr"]["value"] == str(run.RunConfig.build("finetune").optimiser.lr)
    assert set(rows) == set(run.setting_names()) - {
        "command",
        "method",
        "preset",
        "resume",
        "options",
    }
    assert main(["settings", "finetune"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Next: medssl finetune PROJECT --set KEY=VALUE changes one"


@each("setting", ["preset=quick", "command=selftrain", "method=pgl", "resume=true"])
def test_what_decides_the_settings_is_not_itself_set(setting, project, capsys):
    """Each of these would be put on record without taking effect."""
    assert main(["finetune", str(project), "--set", setting]) == 2
    assert f"{setting.split('=')[0]!r} cannot be set" in capsys.readouterr().err


@each(
    ("command", "key"),
    [
        ("pretrain", "options.meta"),
        ("selftrain", "options.rounds"),
        ("complete", "options.edge"),
    ],
)
def test_settings_lists_a_method_s_own_keys(command, key, capsys):
    assert main(["settings", command, "--json", "--method", "gcl"]) == 0
    assert key in {row["key"] for row in json.loads(capsys.readouterr().out)}


# ------------------------------------------------------------------------------------------- real
# process


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; from MedSSLLib.cli.main import main; main(['--help']);"
        "print(sorted({'torch', 'monai', 'SimpleITK', 'numpy', 'pydantic', 'rich', 'matplotlib'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_module_runs_as_a_command():
    done = run_medssl("--version")
    assert done.returncode == 0 and done.stdout.startswith("medssl ")
    assert run_medssl("status", "/nonexistent").returncode == 2


def test_settings_of_pretraining_say_whose_they_are(capsys):
    assert main(["settings", "pretrain"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "--method pgl" in first and "--method gcl" in first
    assert main(["settings", "pretrain", "--method", "gcl"]) == 0
    assert "those of --method gcl; see also --method pgl" in capsys.readouterr().out.splitlines()[0]
    assert main(["settings", "finetune"]) == 0
    assert "see also" not in capsys.readouterr().out


def test_parse_settings_keeps_everything_after_the_first_equals_sign():
    assert command.parse_settings(["a.b=1=2", " c = x "]) == {"a.b": "1=2", "c": "x"}


def test_say_is_silent_when_quiet(capsys):
    command.say(SimpleNamespace(quiet=True), "x")
    command.say(SimpleNamespace(quiet=False), "a\x1bb\nc")
    assert capsys.readouterr().out == "a\\x1bb\nc\n"


@pytest.mark.parametrize(
    "given, kept", [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_threads_wait_passively_unless_told_otherwise(given, kept):
    """OpenMP reads its settings when PyTorch is loaded, so before anything of the command line is
    imported.
    """
    code = (
        "import os, sys, MedSSLLib.__main__ as m; sys.argv = ['medssl', '--version']\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        name == 'MedSSLLib.cli.main' and print(os.environ.get('OMP_WAIT_POLICY'))\n"
        "sys.meta_path.insert(0, Watch()); m.main()"
    )
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    assert out.stdout.splitlines()[0] == kept


def test_options_that_a_resumed_run_does_not_take_are_told(project):
    from MedSSLLib.data import plan
    from MedSSLLib.images.geometry import Geometry
    from MedSSLLib.project.project import Project
    from MedSSLLib.training import run_folder
    from Testing.lib.core_helpers import loud

    opened = Project.open(project)
    folder = opened.run_folder("r")
    begun = run.RunConfig.build(
        "finetune", overrides={"name": "r", "training.steps": "3", "labelled": '["a"]'}
    )
    plan = plan.make_plan([Geometry((32, 32, 32))], modality=("MR",), channels=1, dim=3)
    run_folder.write_config(folder, begun, plan, {}, "bf16")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "finetune.safetensors").touch()

    def told(*words):
        args = cli.build_parser().parse_args(["finetune", str(project), "--resume", *words])
        events, record = loud()
        given = train.given_by(args, {})
        train.warn_of_unused(train.configuration(args, "supervised", {}), given, opened, events)
        return " ".join(event["message"] for event in record.of("warning"))

    assert (
        told(
            "--steps", "3", "--precision", "bf16", "--device", "cpu", "--set", "optimiser.lr=0.0020"
        )
        == ""
    )
    message = told("--name", "r", "--steps", "9", "--precision", "32", "--set", "optimiser.lr=1")
    assert "Run r goes on with its own settings" in message
    assert "training.steps 9 (it has 3)" in message and "optimiser.lr 1.0 (it has 0.002)" in message
    assert "precision 32 (it has auto)" in message
    assert "preset overnight (it has standard)" in told("--preset", "overnight")
    by_the_clock = begun.override({"name": "t", "training.minutes": 10.0})
    timed = opened.run_folder("t")
    run_folder.write_config(timed, by_the_clock, plan, {}, "bf16")
    (timed / "checkpoint").mkdir()
    (timed / "checkpoint" / "finetune.safetensors").touch()
    assert "training.steps 9 (it has 10 minutes)" in told("--name", "t", "--steps", "9")
