"""Several seeds of one protocol taken together: what is averaged, and what is refused."""

import copy
import json
import runpy
import sys
from pathlib import Path

import pytest

from Testing.lib.benchmark_helpers import record, result_file

SCRIPT = Path(__file__).parents[2] / "bench" / "seeds.py"


def together(capsys, monkeypatch, *files, choices=9):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, files), "--choices", str(choices)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def files(tmp_path):
    """Two seeds of two choices: the gain is 0.1 and 0.3 in the first choice, 0.2 and 0.2 in the
    second.
    """
    made = []
    for seed, gains in enumerate(((0.1, 0.2), (0.3, 0.2))):
        records = [record("random", c, [0.4, 0.5]) for c in range(2)]
        records += [record("pgl", c, [0.4 + gain, 0.5 + gain]) for c, gain in enumerate(gains)]
        path = result_file(tmp_path / f"{seed}.json", records)
        content = json.loads(path.read_text())
        own = {"training.voxels": "4096", "seed": str(seed)}
        content["settings"] |= {"seed": "0", "tag": f"s{seed}", "settings": str(own)}
        path.write_text(json.dumps(content))
        made.append(path)
    return made


def test_dice_is_averaged_over_seeds_before_it_is_compared(files, capsys, monkeypatch):
    found = together(capsys, monkeypatch, *files)
    gap = found["pgl, 2 labelled"]["against random"]
    assert (
        gap["mean"] == pytest.approx(0.2)
        and gap["low"] == pytest.approx(0.2)
        and gap["high"] == pytest.approx(0.2)
    )
    assert found["random, 2 labelled"] == {
        "dice": pytest.approx(0.45),
        "choices": 2,
        "against random": {},
    }
    one = together(capsys, monkeypatch, *files, choices=1)["pgl, 2 labelled"]
    assert one["choices"] == 1 and one["against random"]["choices"] == [0]


def test_files_of_other_settings_are_refused(files, capsys, monkeypatch):
    content = copy.deepcopy(json.loads(files[1].read_text()))
    content["settings"]["steps"] = "99"
    files[1].write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="differ in more than the seed"):
        together(capsys, monkeypatch, *files)
