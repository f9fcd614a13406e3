"""Snippets in the documents run: commands are known to the real parser, the tour is walked, Python
is executed.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.cli import main as cli
from MedSSLLib.config.lengths import PRESET_MINUTES
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.methods import outside
from MedSSLLib.project.project import Project
from MedSSLLib.training.checkpoint import load_tensors
from Testing.lib.case_helpers import each
from Testing.lib.documents import (
    DOCUMENTS,
    ROOT,
    blocks,
    calls,
    docstrings,
    inline_code,
    options,
    shell_lines,
    sub_parsers,
)

NAMES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}
BENCH = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "Testing" / "bench").rglob("*.md"))
}
TINY = [
    "--set",
    "network.widths=[4,8]",
    "--set",
    "training.voxels=512",
    "--set",
    "training.batch=4",
]
METHODS_GUIDE = "Resources/Documentation/Methods.md"


def complaint(words: list[str], capsys) -> str:
    """What the real parser says against a call; '' when it takes it."""
    try:
        cli.build_parser().parse_args(words)
    except SystemExit as stop:
        return "" if stop.code == 0 else capsys.readouterr().err.strip()
    return ""


# ------------------------------------------------------------------------------------------------
# the collector


def test_the_collector_finds_what_is_written():
    text = "a\n```sh\n# no\nmedssl doctor   # yes\nX=1 medssl runs \\\n  heart | head\n```\n\n"
    text += "    medssl init p\n"
    text += "\nSee `medssl show\nheart run`.\n\n```python\nx = 1\n```\n"
    found = [call for line in shell_lines(text) for call in calls(line)]
    assert found == [["doctor"], ["runs", "heart"], ["init", "p"]]
    assert inline_code(text) == ["medssl show heart run"]
    assert [(block.language, block.line) for block in blocks(text)] == [("sh", 3), ("python", 15)]
    assert calls("echo medssl") == [] and calls("python -m MedSSLLib doctor > x") == [["doctor"]]


@each(
    "words",
    [
        ["finetun", "heart"],
        ["finetune", "heart", "--stepps", "3"],
        ["predict", "heart"],
        ["benchmark", "speed", "--results", "x"],
    ],
)
def test_the_parser_complains_about_what_is_wrong(words, capsys):
    assert complaint(words, capsys)


# ------------------------------------------------------------------------------------------------
# commands


@each("name", [*NAMES, *BENCH])
def test_command_lines_in_documents_are_known_to_the_parser(name, capsys):
    text = (NAMES | BENCH)[name]
    for line in shell_lines(text):
        for words in calls(line):
            assert complaint(words, capsys) == "", f"{name}: {line}"


def test_the_examples_of_the_help_are_known_to_the_parser(capsys):
    examples = [line for _, group in cli.GROUPS for command in group for line in command.examples]
    found = [words for line in examples for words in calls(line)]
    assert len(found) >= len(examples) > 10
    for words in found:
        assert complaint(words, capsys) == "", words


def test_commands_and_options_in_running_text_exist():
    parser = cli.build_parser()
    known, every = sub_parsers(parser), options(parser)
    texts = NAMES | BENCH | docstrings(ROOT / "MedSSLLib")
    checked = 0
    for place, text in texts.items():
        for code in inline_code(text):
            words = code.split()
            if words[0] != "medssl" or len(words) < 2:
                continue
            checked += 1
            first = words[1]
            assert first.isupper() or first.startswith("--") or first in known or "|" in first, (
                f"{place}: {code}"
            )
            allowed = options(known[first]) if first in known else every
            wrong = [w for w in re.findall(r"--[a-z][\w-]*", code) if w not in allowed]
            assert not wrong, f"{place}: {code}"
    assert checked > 30


@each("name", NAMES)
def test_options_named_alone_exist(name):
    every = options(cli.build_parser())
    for code in inline_code(NAMES[name]):
        if re.fullmatch(r"--[a-z][\w-]*( .*)?", code):
            assert code.split()[0].split("=")[0] in every, code


def test_every_command_is_in_the_readme_or_the_changelog():
    text = NAMES["README.md"] + NAMES["CHANGELOG.md"]
    missing = [
        name
        for name in sub_parsers(cli.build_parser())
        if not re.search(rf"medssl {name}\b|`{name}`", text)
    ]
    assert not missing


@each("name", [*NAMES, *BENCH])
def test_links_and_pictures_of_documents_exist(name):
    text = (NAMES | BENCH)[name]
    for target in re.findall(
        r"\]\((?!https?:|mailto:)([^)\s#]*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    ):
        assert not target or (ROOT / name).parent.joinpath(target).exists(), target


# ------------------------------------------------------------------------------------------------
# the tour


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """What the tour unpacks: a data set of the Decathlon, here a tiny one; the current folder."""
    generator = np.random.default_rng(1)
    geometry = Geometry((24, 22, 10), (1.2, 1.2, 3.0), (5.0, -9.0, 30.0))
    folder = tmp_path / "Task04_Hippocampus"
    names = [
        f"hippocampus_{number}"
        for number in ("001", "003", "004", "006", "020", "261", "007", "008", "014")
    ]
    for name in names:
        label = np.zeros(geometry.shape, np.uint8)
        low = generator.integers(2, 5, 3)
        label[low[0] : low[0] + 5, low[1] : low[1] + 12, low[2] : low[2] + 12] = 1
        label[low[0] + 1 : low[0] + 4, low[1] + 3 : low[1] + 9, low[2] + 3 : low[2] + 9] = 2
        image = generator.normal(label * 50.0 + 100, 8).astype(np.float32)
        io.write_image(folder / "imagesTr" / f"{name}.nii.gz", Volume(image, geometry))
        io.write_image(folder / "labelsTr" / f"{name}.nii.gz", Volume(label, geometry))
    files = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in names
    ]
    write_json(
        folder / "dataset.json",
        {
            "name": "Hippocampus",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
            "training": files,
            "test": [],
        },
    )
    monkeypatch.chdir(tmp_path)


def shortened(words: list[str]) -> list[str]:
    """The call as it is, but for a moment instead of minutes, and with a tiny network where nothing
    else gives one.
    """
    if words[0] not in ("pretrain", "finetune", "selftrain", "complete"):
        return words
    words = list(words)
    place = words.index("--minutes")
    words[place : place + 2] = [
        "--steps",
        "60" if words[0] == "finetune" else "2",
    ]  # self-training needs some model
    rounds = ["--rounds", "1"] if words[0] == "selftrain" else []
    return [*words, *TINY, *rounds, "--device", "cpu"]


def without_figures(text: str) -> str:
    """The words of a terminal: numbers and times, and the widths that follow them, masked."""
    text = re.sub(r"(?<=look at )\S+(?= first)", "#", text)
    text = re.sub(r"\d+ (?:s|min)\b", "#", text)
    text = re.sub(r"(?<![\w_])[+-]?\d+(?:\.\d+)?", "#", text)
    lines = [re.sub(r"[ ─]{2,}", "  ", line).rstrip() for line in text.splitlines()]
    return "\n".join(lines) + "\n"


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("cohort")
def test_the_ten_minute_tour_of_the_readme_runs(tmp_path, capsys):
    section = NAMES["README.md"].split("## Ten minutes on the command line")[1].split("\n## ")[0]
    (block,) = blocks(section, "sh")
    (names,) = re.findall(r'^printf "(.*?)" (.*?) > test.txt$', block.text, re.MULTILINE)
    (tmp_path / "test.txt").write_text(
        "".join(names[0].replace("\\n", "\n") % number for number in names[1].split())
    )
    tour = [words for line in shell_lines(section) for words in calls(line)]
    done = [words[0] for words in tour]
    assert {"init", "finetune", "selftrain", "complete", "suggest", "report"} <= set(done)
    minutes = sum(
        float(words[words.index("--minutes") + 1]) for words in tour if "--minutes" in words
    )
    assert minutes <= 7, "with reading, predicting and scoring ten minutes"
    told = []
    for words in tour:
        code = cli.main(shortened(words))
        output = capsys.readouterr()
        assert code == 0, f"medssl {' '.join(words)}\n{output.err}"
        told.append(f"$ medssl {shlex.join(words)}\n{output.out}")
    expected = Path(__file__).with_name("tour.txt").read_text(encoding="utf-8")
    assert without_figures("".join(told)) == expected, "what a newcomer reads"
    test = ["hippocampus_001", "hippocampus_003", "hippocampus_004", "hippocampus_006"]
    written = sorted(path.name for path in (tmp_path / "segmentations").glob("*.nii.gz"))
    assert written == [f"{name}.nii.gz" for name in test]
    source = io.read_header(tmp_path / "Task04_Hippocampus" / "imagesTr" / written[0])
    assert io.read_header(tmp_path / "segmentations" / written[0]) == source
    assert sorted(read_json(tmp_path / "metrics.json")["cases"]) == test
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
    completed = io.read_label(tmp_path / "completed" / "hippocampus_020.nii.gz", source)
    assert set(np.unique(completed.array)) <= {0, 1, 2}


def test_documents_and_help_name_the_lengths_of_the_presets(capsys):
    usual, night = PRESET_MINUTES["standard"], PRESET_MINUTES["overnight"]
    hours = [f"{night[one] / 60:g}" for one in ("finetune", "selftrain", "pretrain")]
    one, two, three = (f"{usual[one]:g}" for one in ("finetune", "selftrain", "pretrain"))
    words = (
        f"fine-tuning takes {one} minutes, self-training {two}, pre-training {three}, or with "
        f"`--preset overnight` {hours[0]}, {hours[1]} and {hours[2]} hours"
    )
    for name in ("README.md", "CHANGELOG.md"):
        assert words in " ".join((ROOT / name).read_text(encoding="utf-8").split()), name
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["finetune", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("-\n", "-").split())
    assert f"{three} minutes of pre-training, {one} of fine-tuning, {two} of self-" in shown
    assert f"overnight: {hours[2]}, {hours[0]} and {hours[1]} hours" in shown


def test_the_readme_is_short_and_its_pictures_exist():
    text = NAMES["README.md"]
    assert len(text.splitlines()) <= 180
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert len(shown) >= 2 and all((ROOT / path).is_file() for path in shown)


# ------------------------------------------------------------------------------------------------
# Python


@pytest.mark.parametrize("name", [name for name, text in NAMES.items() if blocks(text, "python")])
def test_python_blocks_run(name, tmp_path, monkeypatch):
    """The blocks of a document, in order, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    text = "\n\n".join(block.text for block in blocks(NAMES[name], "python"))
    module_of(
        text.replace("from __future__ import annotations", ""), tmp_path / "blocks.py", monkeypatch
    )


def module_of(text, path, monkeypatch):
    """The text as an imported module."""
    path.write_text(text, encoding="utf-8")
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def test_the_method_of_the_guide_trains(data_set, tmp_path, monkeypatch, capsys):
    """Read from the page, saved as a file, named as the page does, trained for two steps by the
    real command.
    """
    text = NAMES[METHODS_GUIDE]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(outside, "_added", {})
    (tmp_path / "twins.py").write_text(blocks(text, "python")[0].text, encoding="utf-8")
    (call,) = (
        words
        for line in shell_lines(text)
        for words in calls(line)
        if "--minutes" in words and any(word.startswith("twins.py") for word in words)
    )
    name = call[call.index("--method") + 1]
    Project.create(tmp_path / "heart", data_set.images, labelled="", test="").save()
    call = [
        "pretrain",
        str(tmp_path / "heart"),
        "--method",
        name,
        "--name",
        "mine",
        "--steps",
        "2",
        "--dim",
        "3d",
    ]
    assert cli.main([*call, *TINY, "--set", "options.redundancy=0.01", "--device", "cpu"]) == 0, (
        capsys.readouterr().err
    )
    run = tmp_path / "heart" / "runs" / "mine"
    assert read_json(run / "metrics.json")["steps"] == 2
    tensors, _ = load_tensors(run / "weights.safetensors")
    assert any(key.startswith("encoder") for key in tensors)
    assert cli.main(["settings", "pretrain", "--method", name]) == 0
    assert "redundancy" in capsys.readouterr().out


def test_the_guide_names_what_a_method_has():
    """Attributes and hooks that the guide tells of exist, and none is left out."""
    from MedSSLLib.methods.base import Method

    table = NAMES[METHODS_GUIDE].split("## The file")[0]
    told = {code.split("(")[0].split(" ")[0] for code in inline_code(table)}
    hooks = {key for key in vars(Method) if not key.startswith("_")}
    assert hooks <= told, hooks - told


def test_the_citation_has_what_a_reader_cites():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    top = {line.partition(":")[0] for line in text.splitlines() if re.match(r"[a-z]", line)}
    wanted = {"cff-version", "message", "title", "type", "abstract", "version", "license"}
    assert wanted | {"authors", "keywords", "references"} <= top
    papers = re.findall(r'"arXiv:(\d{4}\.\d{5})"', text)
    assert papers and all(paper in NAMES["README.md"] for paper in papers)
