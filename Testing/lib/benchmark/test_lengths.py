"""Result files of several lengths as one figure: the same choices, the same settings."""

import json

import numpy as np

from MedSSLLib.benchmark.report import write_tables
from MedSSLLib.benchmark.tables import lines_of_lengths, load_studies
from Testing.lib.benchmark_helpers import record, result_file


def file_of(folder, name, steps, dices, **settings):
    """A result file with a record for each choice: all of its cases have one Dice."""
    records = [
        record("random", choice, [dice] * 4, count="1")
        | {"steps": steps, "labelled": [f"case{choice}"]}
        for choice, dice in dices.items()
    ]
    given = {"steps": str(steps), "selftrain_settings": str({"training.steps": steps})}
    return result_file(folder / name, records, settings=given | settings)


def test_points_of_a_line_are_over_the_choices_that_all_have(tmp_path):
    files = [
        file_of(tmp_path, "short.json", 100, {0: 0.4, 1: 0.6, 2: 0.0}),
        file_of(tmp_path, "long.json", 900, {0: 0.8, 1: 0.9}),
    ]
    (line,) = lines_of_lengths(load_studies(files))["heart"].values()
    assert list(line) == [100, 900]
    np.testing.assert_allclose([line[100][0], line[900][0]], [0.5, 0.85])
    written = write_tables(load_studies(files), tmp_path / "out")
    assert tmp_path / "out" / "figures" / "heart-lengths.png" in written
    assert "What longer training buys" in (tmp_path / "out" / "report.html").read_text()


def test_lengths_that_share_no_labelled_volume_are_not_joined(tmp_path):
    """A choice is its labelled volumes, not its number; nor does one file make a line of itself."""
    short = file_of(tmp_path, "short.json", 100, {0: 0.4, 1: 0.6})
    long = file_of(tmp_path, "long.json", 900, {2: 0.8})
    assert lines_of_lengths(load_studies([short, long])) == {}
    content = json.loads(short.read_text())
    content["records"][1]["steps"] = 140
    short.write_text(json.dumps(content))
    assert lines_of_lengths(load_studies([short])) == {}


def test_other_settings_are_another_line(tmp_path):
    """And a line of one point is no line."""
    short = file_of(tmp_path, "short.json", 100, {0: 0.4})
    long = file_of(tmp_path, "long.json", 900, {0: 0.8}, settings="{'training.batch': '2'}")
    assert lines_of_lengths(load_studies([short, long])) == {}
    other = file_of(
        tmp_path, "other.json", 900, {0: 0.8}, selftrain_settings="{'options.rounds': '2'}"
    )
    assert lines_of_lengths(load_studies([short, other])) == {}
    again = file_of(tmp_path, "again.json", 500, {0: 0.7}, tag="again")
    (line,) = lines_of_lengths(load_studies([short, again, other]))["heart"].values()
    assert list(line) == [100, 500]
    longer = file_of(
        tmp_path, "longer.json", 1500, {0: 0.9}, selftrain_settings="{'options.rounds': '2'}"
    )
    lines = lines_of_lengths(load_studies([short, again, other, longer]))["heart"]
    assert {name: list(line) for name, line in lines.items()} == {
        "random, 1 labelled": [100, 500],
        "random, 1 labelled (2)": [900, 1500],
    }


def test_another_scale_of_ct_is_another_line(tmp_path):
    short = file_of(tmp_path, "short.json", 100, {0: 0.4})
    long = file_of(tmp_path, "long.json", 900, {0: 0.8})
    assert len(lines_of_lengths(load_studies([short, long]))) == 1
    content = json.loads(long.read_text())
    content["records"][0]["intensities"] = 3
    long.write_text(json.dumps(content))
    assert lines_of_lengths(load_studies([short, long])) == {}
