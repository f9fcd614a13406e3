"""The number format of training: bfloat16 stays near float32 on the processor, is on record, and
outlives a resume.
"""

import json
from contextlib import ExitStack

import numpy as np
import pytest

from MedSSLLib.finetuning.finetune import run_finetune
from MedSSLLib.pretraining.pretrain import run_pretrain
from MedSSLLib.reporting.run_report import write_run_report
from MedSSLLib.training import devices
from MedSSLLib.training.context import open_context
from MedSSLLib.training.run_folder import open_run, write_config
from Testing.lib.core_helpers import loud, tiny_config, tiny_project
from Testing.lib.training.test_run_folder import PLAN

WORK = {"finetune": (run_finetune, "supervised"), "pretrain": (run_pretrain, "byol")}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tiny_project(tmp_path_factory.mktemp("precision"))


@pytest.mark.parametrize("command", WORK)
def test_bfloat16_on_the_processor_follows_float32(project, command):
    run, method = WORK[command]
    losses = {}
    for precision in ("32", "bf16"):
        name = f"{command}-{precision}"
        config = tiny_config(
            command, method=method, name=name, precision=precision, dim="2d", training__batch=4
        )
        events, record = loud()
        folder = run(project, config, events)
        assert record.of("start")[0]["precision"] == precision
        assert (
            json.loads((folder / "config.json").read_text(encoding="utf-8"))["precision"]
            == precision
        )
        assert f"- number format: {precision}\n" in (folder / "model_card.md").read_text(
            encoding="utf-8"
        )
        page = write_run_report(project, name, folder / "report.html").read_text(encoding="utf-8")
        assert f"<dt>number format of training</dt><dd>{precision}</dd>" in page
        steps = [e["losses"] for e in record.of("progress") if e["stage"] == command]
        losses[precision] = np.array([sum(step.values()) for step in steps])
    exact, rounded = losses["32"], losses["bf16"]
    assert len(exact) == len(rounded) == 6 and np.isfinite(rounded).all()
    assert exact[0] != rounded[0], "it was computed in another format"
    assert rounded[0] == pytest.approx(exact[0], rel=0.02) and rounded == pytest.approx(
        exact, rel=0.1
    )


def test_float16_on_a_processor_is_bfloat16_and_says_so(project):
    events, record = loud()
    folder = run_finetune(
        project, tiny_config(name="half", precision="16", training__steps=1), events
    )
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["precision"] == "bf16"
    assert [e["message"] for e in record.of("warning") if "Float16" in e["message"]]


def test_auto_is_put_on_record_as_what_it_was(project, monkeypatch):
    monkeypatch.setattr(devices, "_multiplies_bfloat16", lambda: True)
    folder = run_finetune(project, tiny_config(name="auto", training__steps=1), loud()[0])
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert facts["precision"] == "bf16" and facts["config"]["precision"] == "auto"


@pytest.mark.parametrize(
    ("asked", "recorded", "expected"),
    [
        ("auto", "32", "32"),
        ("auto", "bf16", "bf16"),
        ("bf16", "bf16", "bf16"),
        ("32", "32", "32"),
        ("auto", "", "32"),
        ("bf16", "", "bf16"),  # earlier versions recorded none; their auto was float32 here
    ],
)
@pytest.mark.parametrize("matrices", [True, False])
def test_a_resumed_run_keeps_its_number_format(
    project, monkeypatch, asked, recorded, expected, matrices
):
    monkeypatch.setattr(devices, "_multiplies_bfloat16", lambda: matrices)
    name = f"kept-{asked}-{recorded}-{matrices}"
    folder, config = open_run(project, tiny_config(name=name, precision=asked))
    write_config(folder, config, PLAN, {"classes": ["background", "x"]}, recorded)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "a.safetensors").touch()
    events, record = loud()
    with ExitStack() as stack:
        context = open_context(project, tiny_config(name=name, resume=True), events, stack)
        assert (
            context.precision == expected
            and context.folder == folder
            and context.config.precision == asked
        )
    assert record.of("start")[0]["precision"] == expected
