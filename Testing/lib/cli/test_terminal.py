"""What a person meets at a terminal of 80 columns, in a pipe, and after a slip of the fingers."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MedSSLLib.active_learning.suggest import SuggestOptions, run_suggest
from MedSSLLib.cli import tables
from MedSSLLib.cli.annotate import slice_words
from MedSSLLib.cli.apply import _after_predict
from MedSSLLib.cli.command import for_terminal
from MedSSLLib.cli.main import GROUPS, build_parser, main
from MedSSLLib.core.events import Events
from MedSSLLib.core.packages import install_command, python_program
from MedSSLLib.core.sinks import Bar
from MedSSLLib.core.words import fitting, stage_words, told
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.project.project import Project

ROOT = Path(__file__).parents[3]


def write(path, size=(12, 10, 6), spacing=(1.0, 1.0, 5.0), label=False):
    rng = np.random.default_rng(0)
    array = rng.normal(1000, 200, size[::-1]).astype(np.int16)
    if label:
        array = (array > 1100).astype(np.uint8)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def cohort(tmp_path):
    """Four scans with labels, two of them labelled, in a project ``heart``."""
    for number in range(1, 5):
        write(tmp_path / "scans" / f"patient_number_{number:03d}.nii.gz")
        write(tmp_path / "masks" / f"patient_number_{number:03d}.nii.gz", label=True)
    Project.create(
        tmp_path / "heart",
        tmp_path / "scans",
        labels=tmp_path / "masks",
        labelled="patient_number_001,patient_number_002",
    )
    return tmp_path


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


# -------------------------------------------------------------------------------------- progress


def progress_line(event, width=80):
    """The line that the bar draws, without colours."""
    from rich.console import Console

    bar = Bar(("start",))
    bar.close()
    console = Console(width=width, force_terminal=False, no_color=True)
    bar.write({"time": 0.0, **event})
    with console.capture() as captured:
        console.print(bar._progress.make_tasks_table(bar._progress.tasks))
    bar.close()
    return captured.get().rstrip("\n")


@pytest.mark.parametrize("step, steps", [(58, 300), (12345, 20000)])
def test_a_progress_line_of_80_columns_has_stage_bar_count_time_and_loss(terminal, step, steps):
    line = progress_line(
        {
            "event": "progress",
            "stage": "pre-train: pretrain with a long name",
            "step": step,
            "steps": steps,
            "losses": {"dice": 0.512, "cross entropy": 0.333},
            "figures": {"feature_std": 0.81, "ema_momentum": 0.99},
            "seconds_left": 3725,
        }
    )
    assert "\n" not in line and len(line) <= 80
    assert line.startswith("pre-train: pretra") and "━" in line
    assert f"{step}/{steps}" in line and "1:02:05 left" in line and "dice 0.512" in line


def test_wide_terminals_show_what_narrow_ones_leave_out(monkeypatch):
    event = {
        "event": "progress",
        "stage": "finetune",
        "step": 5,
        "steps": 10,
        "losses": {"dice": 0.512},
        "figures": {"feature_std": 0.81},
        "seconds_left": 4,
    }
    for width, shown in ((60, False), (80, False), (140, True)):
        monkeypatch.setenv("COLUMNS", str(width))
        line = progress_line(event, width)
        assert len(line) <= width and "5/10" in line
        assert ("feature std 0.81" in line) is shown


def test_bars_that_are_done_stay_above_the_words_that_follow(terminal, monkeypatch):
    """On a real terminal, where the last line that is drawn is the last line that is seen."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = Bar(("done",))
    step = {"event": "progress", "time": 0.0, "stage": "finetune", "steps": 3}
    for run in ("first", "second"):
        bar.write(step | {"step": 3})
        bar.write({"event": "done", "time": 0.0, "command": "finetune", "run": run})
        print(f"Trained {run}", file=screen)
    bar.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n")
    shown = [line for line in text.splitlines() if line.strip()]
    assert shown[-1] == "Trained second"
    drawn = [index for index, line in enumerate(shown) if line.startswith("finetune")]
    assert drawn[0] < shown.index("Trained first") < drawn[-1]


def test_stages_that_have_ended_make_room(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = Bar(())
    step = {"event": "progress", "time": 0.0, "steps": 3}
    for number in range(12):
        bar.write(step | {"stage": "benchmark", "step": number // 6})
        bar.write(step | {"stage": f"run {number}", "step": 3})
        assert len(bar._progress.tasks) <= 6
    assert [task.fields["stage"] for task in bar._progress.tasks][0] == "benchmark"
    assert bar._progress.tasks[-1].fields["stage"] == "run 11"
    bar.close()


def test_bars_of_a_benchmark_stay_above_its_results(monkeypatch, tmp_path, capsys):
    class Told:
        def write(self, event):
            print(event["event"])

        def close(self):
            pass

    monkeypatch.setattr("MedSSLLib.cli.benchmark._run_labels", lambda args, events: None)
    monkeypatch.setattr("MedSSLLib.benchmark.tables.load_studies", lambda files: [])
    report = tmp_path / "report.html"
    monkeypatch.setattr("MedSSLLib.benchmark.report.write_tables", lambda *args: [report])
    argv = ["benchmark", "labels", "--data", "heart", "--out", str(tmp_path)]
    args = build_parser().parse_args(argv)
    with Events([Told()]) as events:
        args.work(args, events)
    *_, first, shown, last = lines_of(capsys)
    assert (first, shown) == ("done", f"Report: {report}")
    assert last.startswith("Next: the same command with more --counts")


def test_of_a_long_stage_the_run_is_cut():
    assert stage_words("random-2-0-bench: finetune", 18) == "random-\u2026: finetune"
    assert stage_words("first: finetune", 18) == "first: finetune"
    for long in ("a stage without a run", "a: stage of many characters"):
        assert stage_words(long, 18) == long


def test_scans_that_are_read_are_no_steps(terminal):
    event = {"event": "progress", "stage": "predict", "steps": 9, "losses": {}}
    bar = Bar(("start",))
    for step in (1, 2):
        bar.write(event | {"step": step, "time": float(step)})
    (task,) = bar._progress.tasks
    bar.close()
    assert task.fields["count"] == "2/9" and task.fields["note"] == ""


def test_a_stage_that_is_done_shows_no_time_left(terminal):
    bar = Bar(("start",))
    event = {"event": "progress", "time": 0.0, "steps": 2, "seconds_left": 60}
    for stage in ("round-1", "pseudo-2"):
        bar.write(event | {"stage": stage, "step": 1})
        bar.write(event | {"stage": stage, "step": 2})
    left = [task.fields["left"] for task in bar._progress.tasks]
    bar.close()
    assert left == ["", "1:00 left"]


def test_only_whole_texts_are_shown():
    assert fitting(["loss 0.5", "much too long", "ok"], 13) == "loss 0.5  ok"
    assert fitting(["long"], 3) == ""


def test_events_are_told_in_words():
    start = {"event": "start", "command": "finetune", "run": "first", "device": "cpu"}
    assert told(start | {"precision": "bf16"}) == "Fine-tuning: run first, on cpu in bfloat16"
    assert told({"event": "done", "time": 0, "command": "init"}) == ""
    assert told({"event": "metric", "message": "Meta labels: a."}) == "Meta labels: a."
    pieces = {"event": "warning", "message": "heart_01: 2 pieces taken away.", "case": "heart_01"}
    assert told(pieces) == "warning: heart_01: 2 pieces taken away."
    taken = {"event": "metric", "stage": "pgl-2: transfer", "tensors_loaded": 54, "report": "..."}
    assert told(taken) == "54 tensors taken over from the encoder"
    scored = {"event": "metric", "stage": "benchmark", "row": "pgl", "labelled": 2, "choice": 0}
    assert told(scored | {"dice": 0.22816}) == "pgl, 2 labelled, choice 1: Dice 0.228"
    assert told(pieces | {"case": "b"}).endswith("away. (case b)")


# ---------------------------------------------------------------------------------------- tables


def test_status_fits_and_leaves_names_whole(cohort, terminal, monkeypatch, capsys):
    monkeypatch.chdir(cohort)
    assert main(["status", "heart"]) == 0
    lines = lines_of(capsys)
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("patient_number_00") for line in lines) == 4
    assert "12 x 10 x 6" in lines[3] and "1 x 1 x 5" in lines[3] and "all slices" in lines[3]
    assert lines[-1] == "Next: medssl finetune heart"
    case = Project.open("heart").labelled[0]
    moved = case.label.rename(case.label.with_name("moved.nii.gz"))
    try:
        assert main(["status", "heart"]) == 0
        (line,) = [line for line in lines_of(capsys) if line.startswith(case.name)]
        assert "file is missing" in line and "all slices" not in line
    finally:
        moved.rename(case.label)


def test_a_project_without_runs_is_told_how_to_begin(cohort, monkeypatch, capsys):
    monkeypatch.chdir(cohort)
    assert main(["runs", "heart"]) == 0
    assert lines_of(capsys) == ["No runs yet.", "Next: medssl finetune heart"]


def test_a_run_that_was_killed_at_its_start_fits_its_line(cohort, terminal, monkeypatch, capsys):
    (cohort / "heart" / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(cohort)
    assert main(["runs", "heart"]) == 0
    (line,) = [line for line in lines_of(capsys) if line.startswith("first")]
    assert line.split(maxsplit=1)[1].startswith("config.json: does not exist")


def test_what_comes_next_can_be_typed_with_spaces_in_names(cohort):
    project = Project.open(cohort / "heart")
    project.set_roles(labelled="patient_number_001", test="patient_number_004")
    argv = ["predict", "my heart", "--run", "first", "--out", "my results"]
    words = _after_predict(project, build_parser().parse_args(argv))
    assert shlex.split(words)[2:7] == ["my heart", "--run", "first", "--predictions", "my results"]


def test_columns_without_a_value_are_left_out(terminal, capsys):
    tables.print_table(("a", "b", "c"), [("1", "", "x"), ("2", "", "y")])
    assert lines_of(capsys)[0].split() == ["a", "c"]


def test_a_pipe_gets_whole_lines(capsys):
    tables.print_table(("name", "why"), [("x", "word " * 60)])
    assert len(lines_of(capsys)) == 4


def test_words_are_folded_at_spaces_on_a_terminal_and_commands_stay_whole(terminal, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    words = "hippo: 11 cases (2 labelled, 5 unlabelled, 4 test); MR; classes Anterior, Posterior."
    assert for_terminal(words, Screen()).splitlines() == [words[:73], words[74:]]
    assert for_terminal(words, io.StringIO()) == words
    command = f"Next: medssl predict {'a' * 70} --run first"
    assert for_terminal(command, Screen()) == command


@pytest.mark.parametrize("command", [command for _, group in GROUPS for command in group])
def test_help_fits_a_terminal_but_for_commands_to_copy(terminal, capsys, command):
    with pytest.raises(SystemExit):
        build_parser().parse_args([command.name, "--help"])
    lines = lines_of(capsys)
    assert [line for line in lines if len(line) > 80 and not line.startswith("  medssl ")] == []


# ----------------------------------------------------------------------------------------- slips


@pytest.mark.parametrize(
    "argv, words",
    [
        (["finetun", "heart"], "'finetun' is no command. Did you mean 'finetune'?"),
        (["pretrain", "heart", "--method", "pgll"], "Did you mean 'pgl'?"),
        (["suggest", "heart", "--budget", "3", "--strategy", "evn"], "Did you mean 'even'?"),
        (["show", "heart", "frist"], "there is no run 'frist'. Did you mean 'first'?"),
        (["predict", "heart", "--run", "frist", "--out", "x"], "Did you mean 'first'?"),
        (["finetune", "heart", "--init", "frist"], "Did you mean 'first'?"),
        (["init", "scans/patient_number_001.nii.gz", "--images", "scans"], "is a file, and a"),
        (["set", "heart"], "nothing is to be set"),
        (["finetune", "heart", "--int", "first"], "Did you mean '--init'?"),
        (["finetune", "heart", "--int", "first"], "usage: medssl finetune PROJECT"),
        (["runs", "heart", "--jsn"], "unrecognized arguments: --jsn. Did you mean '--json'?"),
        (["benchmark", "labels", "--data", "x", "--out", "y", "--quik"], "mean '--quick'?"),
        (
            ["evaluate", "--predictions", "scans", "--references", "masks", "--out", "m.json"],
            "as a scan does, not a segmentation",
        ),
    ],
)
def test_slips_are_answered_with_what_was_meant(cohort, monkeypatch, capsys, argv, words):
    (cohort / "heart" / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(cohort)
    assert main(argv) == 2
    assert words in capsys.readouterr().err


def test_medssl_alone_is_a_short_help(capsys):
    assert main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 20 and max(map(len, lines)) <= 80
    assert any("medssl init heart --images scans/" in line for line in lines)


# -------------------------------------------------------------------------------- adding, changing


def test_adding_a_folder_again_is_no_mistake(cohort, monkeypatch, capsys):
    monkeypatch.chdir(cohort)
    write(cohort / "scans" / "patient_number_005.nii.gz", size=(11, 10, 6))
    assert main(["add", "heart", "scans"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("1 new, 4 were there already; in all 5 cases")
    assert captured.err == ""
    assert main(["add", "heart", "--images", "scans"]) == 0
    assert capsys.readouterr().out.startswith("0 new, 5 were there already")


def test_another_scan_of_a_known_name_is_refused_once(cohort, monkeypatch, capsys):
    monkeypatch.chdir(cohort)
    write(cohort / "other" / "patient_number_001.nii.gz", size=(9, 9, 5))
    write(cohort / "other" / "patient_number_009.nii.gz", size=(9, 9, 5))
    assert main(["add", "heart", "other"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("1 new; in all 5 cases")
    assert captured.err.count("another scan of the project has this name") == 1


def test_set_changes_what_init_had_fixed(cohort, monkeypatch, capsys):
    monkeypatch.chdir(cohort)
    (cohort / "table.csv").write_text("case,phase\npatient_number_003,ED\nnobody,ES\n")
    argv = ["set", "heart", "--classes", "1=ventricle", "--test", "patient_number_004"]
    assert main([*argv, "--modality", "CT", "--meta", "table.csv", "--drawn", "axial"]) == 0
    out = capsys.readouterr().out
    assert "Classes: ventricle." in out and "1 test" in out and "train again" in out
    assert out.splitlines()[-1] == "Next: medssl finetune heart"
    project = Project.open(cohort / "heart")
    assert project.classes == ("background", "ventricle") and project.modality == "CT"
    assert [case.name for case in project.test] == ["patient_number_004"]
    assert project.case("patient_number_003").metadata == {"phase": "ED"}
    assert project.case("patient_number_001").metadata == {}


def test_relocate_finds_files_in_their_new_folder(cohort, monkeypatch, capsys):
    monkeypatch.chdir(cohort)
    (cohort / "scans").rename(cohort / "elsewhere")
    assert main(["relocate", "heart", "scans", "elsewhere"]) == 0
    assert lines_of(capsys) == [
        "4 cases now read from elsewhere.",
        "Next: medssl finetune heart",
    ]
    project = Project.open(cohort / "heart")
    assert all(path.exists() for path in project.files)
    assert {path.parent.name for path in project.files} == {"elsewhere", "masks"}
    assert main(["relocate", "heart", "nowhere", "elsewhere"]) == 2
    assert "holds no file of the project" in capsys.readouterr().err
    assert main(["relocate", "heart", "elsewhere", "masks/none"]) == 2
    assert "for instance no patient_number_001.nii.gz" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ suggestions


@pytest.mark.parametrize("budget, spread", [(2, {1: 2}), (3, {1: 1, 2: 1}), (5, {2: 1, 3: 1})])
def test_slices_are_spread_over_cases_first(cohort, budget, spread):
    project = Project.open(cohort / "heart")
    found = run_suggest(project, None, SuggestOptions(budget), Events())
    names = [item.case for item in found]
    counts = [names.count(name) for name in dict.fromkeys(names)]
    assert {n: counts.count(n) for n in set(counts)} == spread, "two cases are not drawn"


def test_a_slice_is_said_where_a_person_finds_it():
    grid = Geometry((30, 40, 35), (1.0, 2.0, 3.0))
    assert slice_words(grid, 2, 4) == ("axial", "axial 5 of 35, 12 mm above the lowest")
    assert slice_words(grid, 2, 0) == ("axial", "axial 1 of 35, the lowest")
    assert slice_words(grid, 1, 3) == ("coronal", "coronal 4 of 40, 6 mm behind the foremost")
    turned = Geometry((30, 40, 35), (1.0, 2.0, 3.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, -1))
    assert slice_words(turned, 2, 0) == ("axial", "axial 1 of 35, 102 mm above the lowest")


# --------------------------------------------------------------------------------------- starting

_WATCH = """
import json, os, shlex, sys, traceback
import numpy, pydantic, SimpleITK  # not heavy: once for all commands, each of which is a fork
from MedSSLLib.cli.main import main
HEAVY = {"torch", "monai", "lightning_fabric", "matplotlib", "nilearn"}
assert not HEAVY & set(sys.modules)
said = []
class Watch:
    def __init__(self, stream): self.stream = stream
    def write(self, text): said.append(text); return self.stream.write(text)
    def __getattr__(self, name): return getattr(self.stream, name)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            sys.stdout.flush()
            os._exit(0 if any(text.strip() for text in said) else 7)
def run(argv):
    sys.stdout, sys.stderr = Watch(sys.stdout), Watch(sys.stderr)
    sys.meta_path.insert(0, Finder())
    try:
        main(argv)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(0)
found = {}
for command in sys.argv[1:]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        run(shlex.split(command))
    os.close(writer)
    with open(reader, encoding="utf-8") as stream:
        text = stream.read()
    found[command] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text]
print(json.dumps(found))
"""
BEGUN = (
    "--help",
    "status heart",
    "runs heart",
    "show heart first",
    "settings finetune",
    "settings pretrain --method gcl",
    "suggest heart --budget 3",
    "suggest heart --budget 3 --run first",
    "pretrain heart",
    "finetune heart",
    "selftrain heart --from first",
    "complete heart --case patient_number_003",
    "predict heart --run first --out out",
    "evaluate --predictions masks --references masks --out m.json",
    "report heart --run first --out r.html",
    "export heart --run first --to onnx --out m.onnx",
    "benchmark labels --data heart --quick --out b",
    "demo --out demo",
)


@pytest.mark.skipif(os.name == "nt", reason="uses fork")
def test_the_first_line_comes_before_anything_slow_is_imported(cohort):
    """PyTorch, MONAI, Fabric and matplotlib take seconds to import, on any computer."""
    (cohort / "heart" / "runs" / "first").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, *BEGUN],
        cwd=cohort,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "COLUMNS": "80"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    late = [command for command, (code, _) in found.items() if code == 7]
    assert not late, "a heavy package was imported before the first line"
    assert list(found) == list(BEGUN) and all(text for _, text in found.values()), found


# --------------------------------------------------------------------------------- what is missing


def test_a_missing_package_comes_with_the_line_that_installs_it(tmp_path):
    assert install_command("onnx>=1.17").endswith(' -m pip install "onnx>=1.17"')
    (tmp_path / "PythonSlicer").touch()
    assert python_program(str(tmp_path / "python-real")) == str(tmp_path / "PythonSlicer")
    assert python_program("/usr/bin/python3") == "/usr/bin/python3"
