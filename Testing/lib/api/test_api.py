"""The Python face: the same runs as by the command line, segmentations of files and arrays, one way
to stop.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest

import MedSSLLib as medssl
from MedSSLLib.api.affine import affine_of, grid_of_affine, volume_of
from MedSSLLib.cli import main as cli
from MedSSLLib.core.events import Event
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.training.checkpoint import load_tensors
from Testing.lib.case_helpers import each
from Testing.lib.conftest import GEOMETRIES
from Testing.lib.core_helpers import tiny_project

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {"network.widths": (4, 8), "training.voxels": 512}
TINY = {"steps": 3, "batch": 2, "device": "cpu", "dim": "3d", "quiet": True, "settings": SETTINGS}
WORDS = ["--steps", "3", "--batch", "2", "--device", "cpu", "--dim", "3d", "-q"]
WORDS += ["--set", "training.voxels=512", "--set", "network.widths=[4,8]"]
SAME = (  # command, arguments in Python, options on the command line
    ("pretrain", {"method": "simclr"}, "--method simclr"),
    (
        "finetune",
        {"annotated_slices": 2, "labelled": ["case0"]},
        "--annotated-slices 2 --labelled case0",
    ),
    (
        "selftrain",
        {"start": "trained", "rounds": 1, "clean": "none"},
        "--from trained --rounds 1 --clean none",
    ),
    ("complete", {"case": "case0", "annotated_slices": 3}, "--case case0 --annotated-slices 3"),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = tiny_project(tmp_path_factory.mktemp("face"))
    project.set_roles(labelled="case0,case1,case2")  # self-training needs another one
    project.save()
    return project


@pytest.fixture(scope="module")
def trained(project):
    """A model of a few more steps, whose segmentations are not empty."""
    return medssl.finetune(project, name="trained", **TINY | {"steps": 60})


def bare_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# ------------------------------------------------------------------------------------------------
# the import


def test_the_import_is_quick_and_loads_nothing():
    code = "import sys, time; a = time.perf_counter(); import MedSSLLib; b = time.perf_counter(); "
    code += "print(b - a, *(n for n in sys.modules if n.startswith('MedSSLLib')))"
    seconds, *modules = bare_python(code)
    assert float(seconds) < 0.05 and modules == ["MedSSLLib"]


def test_projects_and_errors_need_no_package_of_training():
    code = "import sys, MedSSLLib as m; m.Project, m.Run, m.InputError, m.finetune, m.evaluate; "
    code += "print(*{'torch', 'pydantic', 'monai', 'blosc2', 'rich'} & set(sys.modules))"
    assert bare_python(code) == []


def test_the_face_has_what_it_names_and_no_more():
    assert {name for name in dir(medssl) if not name.startswith("_")} >= set(medssl.__all__) - {
        "__version__"
    }
    for name in medssl.__all__:
        assert getattr(medssl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        medssl.train  # noqa: B018
    assert issubclass(medssl.InputError, medssl.MedSSLError)


def test_typed_programs_are_checked(tmp_path):
    """What a type checker sees of the package, as one that uses it: marker, names, arguments."""
    assert (ROOT / "MedSSLLib" / "py.typed").exists()
    program = tmp_path / "program.py"
    program.write_text(
        "import MedSSLLib as medssl\n"
        "run = medssl.finetune('heart', minutes=1)\n"
        "reveal_type(run)\n"
        "reveal_type(run.segment('a.nii.gz'))\n"
        "medssl.finetune('heart', minutes='long')\n"
        "medssl.finetune('heart', minuts=1)\n"
    )
    words = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", str(tmp_path / "c")]
    words += ["--follow-imports=silent", "--ignore-missing-imports", "--no-site-packages"]
    words.append(str(program))  # other packages take a minute and say nothing of this one
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    lines = [line for line in done.stdout.splitlines() if "program.py" in line.split(":")[0]]
    lines = [line for line in lines if "defined in" not in line]
    assert len(lines) == 4, done.stdout
    assert "MedSSLLib.api.run.Run" in lines[0] and "Segmentation" in lines[1]
    assert 'incompatible type "str"' in lines[2] and '"minuts"' in lines[3]


# ------------------------------------------------------------------------------------------------
# the same as the command line


def weights(folder):
    return load_tensors(folder / "weights.safetensors")[0]


@pytest.mark.usefixtures("trained")
def test_the_settings_and_weights_are_those_of_the_command_line(project, capsys):
    for command, arguments, words in SAME:
        run = getattr(medssl, command)(project, name=f"py-{command}", **arguments, **TINY)
        name = f"cli-{command}"
        assert cli.main([command, str(project.folder), "--name", name, *words.split(), *WORDS]) == 0
        other = medssl.Run(project.run_folder(name))
        assert run.config.override({"name": ""}) == other.config.override({"name": ""}), command
        ours, theirs = weights(run.folder), weights(other.folder)
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in ours), command
        assert run.finished and run.name == f"py-{command}" and run.metrics["steps"] > 0
    assert medssl.Run(project.run_folder("py-complete")).completed.exists()
    assert capsys.readouterr().out.count("\n") == 0, "quiet"


def test_every_argument_is_an_option_of_the_command_line():
    """And the other way round, but for those that only a terminal needs."""
    from MedSSLLib.api.arguments import PredictionOptions, SelfTrainingOptions, SuggestionOptions
    from Testing.lib.documents import sub_parsers

    parsers = sub_parsers(cli.build_parser())
    renamed = {"start": "from", "weight": "lambda", "settings": "set"}
    of_terminal = {"help", "events", "quiet", "debug", "tensorboard", "devices", "json", "out"}
    for command, options, own in (
        ("selftrain", SelfTrainingOptions, {"start", "init"}),
        ("predict", PredictionOptions, {"run", "cases", "images"}),
        ("suggest", SuggestionOptions, {"run", "also", "budget"}),
    ):
        ours = {*options.__optional_keys__, *own} - {"quiet", "on_event"}
        ours = {renamed.get(name, name).replace("_", "-") for name in ours}
        theirs = set()
        for action in parsers[command]._actions:
            theirs |= {word[2:] for word in action.option_strings if word.startswith("--")}
        assert ours == theirs - of_terminal, command


def test_an_argument_that_does_not_exist_is_a_type_error(project):
    with pytest.raises(
        TypeError, match=r"finetune\(\) has no argument 'stepps'; did you mean 'steps'"
    ):
        medssl.finetune(project, stepps=3)
    with pytest.raises(medssl.InputError, match="'optimiser.lrr' does not exist.*optimiser.lr"):
        medssl.finetune(project, settings={"optimiser.lrr": 1})
    with pytest.raises(medssl.InputError, match="is given as an option"):
        medssl.finetune(project, steps=3, settings={"training.steps": 4})
    with pytest.raises(medssl.InputError, match="selftrain needs one start"):
        medssl.selftrain(project)


def test_a_run_of_another_project_can_be_the_start(project, trained, tmp_path):
    other = tiny_project(tmp_path, 2)
    run = medssl.finetune(other, init=trained, **TINY)
    assert run.config.init == str(trained.folder / "weights.safetensors")
    with pytest.raises(medssl.InputError, match="is of another project"):
        medssl.predict(other, trained, tmp_path / "out")
    with pytest.raises(medssl.InputError, match="is no folder of a run"):
        medssl.Run(tmp_path)
    here = medssl.finetune(project, init=trained, **TINY)
    assert here.config.init == "trained"


# ------------------------------------------------------------------------------------------------
# segmenting


def test_a_file_and_its_array_are_segmented_as_predict_does(project, trained, tmp_path):
    image = project.case("case2").images[0]
    done = trained.predict(tmp_path / "out", cases=["case2"], device="cpu", quiet=True)
    assert [path.name for path in done.written] == ["case2.nii.gz"] and not done.refused
    written = nibabel.load(done.written[0])
    expected = np.asarray(written.dataobj)
    assert expected.any(), "something is found"
    labels, affine = trained.segment(image, device="cpu")
    assert (labels == expected).all() and np.allclose(affine, written.affine)
    source = nibabel.load(image)
    again = trained.segment(source.get_fdata(), affine=source.affine, device="cpu")
    assert (again.labels == expected).all() and np.allclose(again.affine, written.affine)
    spaced = trained.segment(source.get_fdata(), spacing=(1, 1, 1), device="cpu")
    assert spaced.labels.shape == expected.shape and np.allclose(spaced.affine, np.eye(4))
    assert trained.classes[0] == "background" and set(np.unique(labels)) <= set(trained.classes)


@each("name", sorted(GEOMETRIES))
def test_affines_are_those_of_nibabel(name, tmp_path):
    geometry = GEOMETRIES[name]
    array = np.random.default_rng(0).normal(size=geometry.shape).astype(np.float32)
    io.write_image(tmp_path / "a.nii.gz", Volume(array, geometry))
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert np.allclose(affine_of(geometry), image.affine, atol=1e-4)
    volume = volume_of(image.get_fdata(), affine=image.affine)
    assert (volume.array == array).all() and volume.geometry.close_to(geometry, tolerance=1e-3)


def test_arrays_that_are_no_volume_are_refused(trained):
    good = np.zeros((4, 5, 6))
    for array, grid, finding in (
        (good[0], {"spacing": (1, 1, 1)}, "2 axes"),
        (good, {}, "how large its voxels are"),
        (np.full((4, 5, 6), np.nan), {"spacing": (1, 1, 1)}, "finite"),
        (good.astype(object), {"spacing": (1, 1, 1)}, "finite numbers"),
        (good, {"spacing": (1, 1, -3)}, "no three lengths"),
        (good, {"spacing": (1, 1)}, "no three lengths"),
        (good, {"spacing": (1, 1, np.inf)}, "no three lengths"),
        (good, {"affine": np.eye(3)}, "4 x 4"),
        (good, {"affine": np.diag([0.0, 1, 1, 1])}, "size"),
        (good, {"affine": np.eye(4) + np.eye(4, k=1)}, "right angles"),
        ([good, good], {"spacing": (1, 1, 1)}, r"2 image\(s\) for a model of 1 channel"),
    ):
        with pytest.raises(medssl.InputError, match=finding):
            trained.segment(array, device="cpu", **grid)
    assert grid_of_affine(np.eye(4), (4, 5, 6)) == Geometry(
        (4, 5, 6), direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)
    )


def test_a_run_that_segments_nothing_says_so(project):
    run = medssl.pretrain(project, "simclr", **TINY)
    with pytest.raises(
        medssl.InputError, match="pre-trained encoder, it segments nothing yet"
    ) as e:
        run.segment(project.case("case0").images[0])
    folder = run.folder.parent.parent
    assert f"medssl finetune {folder} --init {run.folder.name}" in str(e.value)
    with pytest.raises(medssl.InputError, match="completes no case"):
        run.completed  # noqa: B018


def test_suggest_and_evaluate(project, trained, tmp_path):
    found = medssl.suggest(project, 2, strategy="even", quiet=True, out=tmp_path / "s.json")
    assert len(found) <= 2 and json.loads((tmp_path / "s.json").read_text())
    trained.predict(tmp_path / "out", quiet=True, device="cpu")
    labels = project.case("case0").label.parent
    scores = medssl.evaluate(tmp_path / "out", labels, project=project, out=tmp_path / "m.json")
    assert set(scores["cases"]) == {case.name for case in project.cases}
    assert json.loads((tmp_path / "m.json").read_text())["summary"] == scores["summary"]


# ------------------------------------------------------------------------------------------------
# events and stopping


def test_events_come_to_a_function_and_a_person_sees_them(project, capfd):
    events: list[Event] = []
    medssl.finetune(project, on_event=events.append, **TINY | {"quiet": False})
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start" and kinds[-1] == "done" and "progress" in kinds
    assert "finetune 3/3" in capfd.readouterr().err
    medssl.finetune(project, **TINY)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("how", ["signal", "raised", "thread"])
def test_ctrl_c_keeps_a_checkpoint_and_the_run_goes_on(project, how):
    def stop(event):
        if event["event"] == "progress" and event["stage"] == "finetune":
            if how == "signal":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise KeyboardInterrupt

    def work():
        with pytest.raises(medssl.CancelledError) as caught:
            medssl.finetune(project, name=f"stopped-{how}", on_event=stop, **TINY | {"steps": 20})
        cancelled.append(caught.value)

    cancelled = []
    before = signal.getsignal(signal.SIGINT)
    if how == "thread":
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        work()
    assert cancelled and signal.getsignal(signal.SIGINT) is before
    run = medssl.Run(project.run_folder(f"stopped-{how}"))
    assert not run.finished and list((run.folder / "checkpoint").glob("*.safetensors"))
    assert "Stopped at step" in (run.folder / "log.txt").read_text()
    done = medssl.finetune(project, name=run.name, resume=True, quiet=True, device="cpu")
    assert done.folder == run.folder and done.finished and done.metrics["steps"] == 20


def test_memory_that_runs_out_is_a_guard(project):
    def full(event):
        if event["event"] == "progress":
            raise MemoryError("no room")

    with pytest.raises(medssl.GuardError, match=r"Out of memory \(no room\)"):
        medssl.finetune(project, on_event=full, **TINY)
