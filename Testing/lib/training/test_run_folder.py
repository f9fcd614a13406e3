"""Run folders: names, resuming, ownership, versions."""

import json

import pytest

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.files import TEMPORARY
from MedSSLLib.data.plan import Plan
from MedSSLLib.training.run_folder import (
    RunFolder,
    open_run,
    owned,
    write_config,
)
from Testing.lib.core_helpers import tiny_config, tiny_project

PLAN = Plan(
    dim=2,
    spacing=(None, 1.0, 1.0),
    slice_axis="own",
    modality=("MR",),
    channels=1,
    patch=(8, 8),
    strides=((1, 1),),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tiny_project(tmp_path_factory.mktemp("runs"), 2, shape=(4, 6, 6))


def started(project, config, *, checkpoint=True):
    folder, config = open_run(project, config)
    write_config(folder, config, PLAN, {"classes": ["background", "x"]})
    if checkpoint:
        (folder / "checkpoint").mkdir(exist_ok=True)
        (folder / "checkpoint" / "a.safetensors").touch()
    return folder


def test_names_count_up_and_taken_names_are_refused(project):
    assert started(project, tiny_config()).name == "finetune-1"
    assert started(project, tiny_config()).name == "finetune-2"
    assert started(project, tiny_config("pretrain", method="pgl")).name == "pgl-1"
    assert started(project, tiny_config(name="mine")).name == "mine"
    with pytest.raises(InputError, match="'mine' exists"):
        open_run(project, tiny_config(name="mine"))
    for bad in ("../x", "a/b", ".."):
        with pytest.raises(InputError, match="run name"):
            open_run(project, tiny_config(name=bad))


def test_a_run_is_resumed_with_its_own_settings(project):
    folder = started(project, tiny_config(name="long", training__steps=77, seed=5))
    found, config = open_run(project, tiny_config(name="long", resume=True, training__steps=3))
    assert found == folder and config.training.steps == 77 and config.seed == 5 and config.resume
    assert open_run(project, tiny_config(resume=True))[0] == folder, "the newest unfinished one"
    (folder / "weights.safetensors").touch()
    with pytest.raises(InputError, match="is finished"):
        open_run(project, tiny_config(name="long", resume=True))
    with pytest.raises(InputError, match="no run 'never'"):
        open_run(project, tiny_config(name="never", resume=True))
    started(project, tiny_config(name="early"), checkpoint=False)
    with pytest.raises(InputError, match="before its first checkpoint"):
        open_run(project, tiny_config(name="early", resume=True))
    with pytest.raises(InputError, match="no unfinished selftrain"):
        open_run(project, tiny_config("selftrain", resume=True))


def test_what_a_run_left_before_its_first_checkpoint_is_not_taken_over(project):
    """Pseudo-labels come before the first step: another run of that name, with other settings, must
    make its own.
    """
    folder = started(project, tiny_config(name="again"), checkpoint=False)
    for part in ("pseudo/round-1", "stages"):
        (folder / part).mkdir(parents=True)
        (folder / part / "summary.json").touch()
    open_run(project, tiny_config(name="again"))
    assert not (folder / "pseudo").exists() and not (folder / "stages").exists()


def test_config_and_plan_come_back_and_newer_files_are_refused(project):
    config = tiny_config(name="kept", optimiser__lr=0.1 + 0.2)
    folder = started(project, config)
    assert RunFolder(folder).config == config and RunFolder(folder).plan == PLAN
    versions = RunFolder(folder).record["versions"]
    assert versions["torch"] != "not installed" and versions["python"].startswith("3.")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(InputError, match="newer"):
        _ = RunFolder(folder).record


def test_a_run_folder_has_one_owner_and_forgets_old_stop_requests(project):
    folder = started(project, tiny_config(name="owned"))
    (folder / "stop").touch()
    with owned(folder):
        assert not (folder / "stop").exists()
        with pytest.raises(MedSSLError), owned(folder):
            pass
    with owned(folder):
        pass


def test_what_a_killed_process_left_half_written_is_cleared_away(project):
    """Files, and folders with files in them: labels on the scan's grid are put together in one."""
    folder = started(project, tiny_config(name="killed"))
    half = folder / "pseudo" / "round-1" / f"{TEMPORARY}ab12"
    half.mkdir(parents=True)
    (half / "image.nii").write_bytes(b"half")
    (half.parent / f"{TEMPORARY}cd34-c0.nii.gz").write_bytes(b"half")
    kept = half.parent / "c0.nii.gz"
    kept.write_bytes(b"whole")
    with owned(folder):
        assert list(half.parent.iterdir()) == [kept]
