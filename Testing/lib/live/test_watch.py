"""Noticing what is drawn: only what differs counts, and a file being written is waited for."""

import os

import numpy as np
import pytest

from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import IGNORE, Annotated
from MedSSLLib.live import watch as module
from MedSSLLib.live.watch import TRIES, Watch, read_drawn
from MedSSLLib.project.manifest import FILE_NAME
from MedSSLLib.project.project import Project
from Testing.lib.core_helpers import tiny_project


@pytest.fixture
def project(tmp_path):
    """Four cases without a labelled one; labels lie in their files."""
    made = tiny_project(tmp_path)
    made.set_roles(labelled="", test="case3")
    made.save()
    return made


@pytest.fixture
def watch(project):
    warnings = []
    made = Watch(Project.open(project.folder), warnings.append)
    made.warnings = warnings
    return made


def draw(project, name, slices, change=None, partly=()):
    """Draw slices of a case along k; `change` edits the label array first."""
    case = project.case(name)
    header = io.read_header(case.images[0])
    array = io.read_label(case.label, header).array.copy()
    if change is not None:
        change(array)
        io.write_image(case.label, Volume(array, header))
    project.set_annotated(name, Annotated.of([(2, slices)], [(2, partly)]))
    project.set_label(name, case.label)
    project.save()


def told(watch):
    return [(c.name, c.version, list(c.changed), list(c.removed)) for c in watch.look()]


def test_new_changed_and_removed_slices_are_told_once(project, watch):
    assert told(watch) == []
    draw(project, "case0", [5, 6])
    assert told(watch) == [("case0", 1, [(2, 5), (2, 6)], [])] and told(watch) == []

    def dot(array):
        array[6, 0, 0] = 1

    draw(project, "case0", [5, 6, 7], dot)
    assert told(watch) == [("case0", 2, [(2, 6), (2, 7)], [])]
    draw(project, "case0", [6])
    assert told(watch) == [("case0", 3, [], [(2, 5), (2, 7)])]
    project.set_label("case0", None)
    project.save()
    assert told(watch) == [("case0", 4, [], [(2, 6)])] and watch.digests == {}


def test_what_lies_off_the_drawn_slices_is_no_change(project, watch):
    draw(project, "case0", [5])
    watch.look()

    def scribble(array):
        array[9] = 1 - array[9]

    draw(project, "case0", [5], scribble)
    assert told(watch) == []


def test_a_test_case_is_never_read(project, watch, monkeypatch):
    read = []
    plain = module.read_drawn
    monkeypatch.setattr(module, "read_drawn", lambda p, c: read.append(c.name) or plain(p, c))
    project.set_annotated("case3", Annotated.of([(2, [5])]))
    project.save()
    draw(project, "case1", [4])
    assert [name for name, *_ in told(watch)] == ["case1"] and read == ["case1"]


def test_only_a_label_that_changed_is_read(project, watch, monkeypatch):
    draw(project, "case0", [5])
    draw(project, "case1", [5])
    watch.look()
    read = []
    plain = module.read_drawn
    monkeypatch.setattr(module, "read_drawn", lambda p, c: read.append(c.name) or plain(p, c))
    draw(project, "case1", [5, 6])
    watch.look()
    watch.look()
    assert read == ["case1"]


def test_a_label_that_is_being_written_is_waited_for(project, watch):
    draw(project, "case0", [5])
    path = project.case("case0").label
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert told(watch) == [] and watch.warnings == []
    path.write_bytes(whole)
    assert told(watch) == [("case0", 1, [(2, 5)], [])] and watch.warnings == []


def test_a_label_that_stays_unreadable_is_reported_once_and_the_old_one_counts(project, watch):
    draw(project, "case0", [5])
    watch.look()
    path = project.case("case0").label
    path.write_bytes(b"no image at all")
    for _ in range(TRIES + 3):
        assert told(watch) == []
    assert len(watch.warnings) == 1 and "case0" in watch.warnings[0]
    assert watch.digests["case0"].keys() == {(2, 5)}


def test_a_broken_manifest_leaves_all_as_it_was(project, watch):
    draw(project, "case0", [5])
    watch.look()
    path = project.folder / FILE_NAME
    content = path.read_text()
    path.write_text(content[:50])
    assert told(watch) == [] and told(watch) == [] and len(watch.warnings) == 1
    path.write_text(content)
    draw(project, "case0", [5, 6])
    assert told(watch) == [("case0", 2, [(2, 6)], [])]


def test_the_manifest_alone_decides_whether_it_is_read_again(project, watch, monkeypatch):
    watch.look()
    opened = []
    monkeypatch.setattr(Project, "open", lambda folder: opened.append(folder))
    watch.look()
    assert opened == []
    os.utime(project.folder / FILE_NAME, (1, 1))
    with pytest.raises(AttributeError):  # what was opened is no project
        watch.look()
    assert opened == [project.folder]


def test_strokes_count_and_what_is_not_said_does_not(project):
    def strokes(array):
        array[5] = 255
        array[5, 3:6, 4] = 1
        array[5, 0, 0:4] = 0

    draw(project, "case0", [4, 5], strokes, partly=[5])
    again = Project.open(project.folder)
    assert again.ignore_value == 255 and again.values == (0, 1)
    drawn = read_drawn(again, again.case("case0"))
    assert np.array_equal(np.unique(drawn.label[5]), [0, 1, IGNORE])
    assert (drawn.label[5] == 1).sum() == 3 and (drawn.label[5] == 0).sum() == 4
    assert (drawn.label[4] != IGNORE).all() and (drawn.label[:4] == IGNORE).all()


def test_a_label_without_a_record_of_slices_counts_everywhere(project):
    project.set_roles(labelled="case0")
    drawn = read_drawn(project, project.case("case0"))
    assert drawn.places == [(2, index) for index in range(12)]


def test_what_an_earlier_process_knew_is_told_without_changes_once(project, watch):
    draw(project, "case0", [5, 6])
    watch.look()
    later = Watch(Project.open(project.folder), watch.warnings.append)
    later.take_up(watch.versions, watch.digests)
    assert told(later) == [("case0", 1, [], [])] and told(later) == []
    draw(project, "case0", [5, 6, 7])
    assert told(later) == [("case0", 2, [(2, 7)], [])]


def test_real_strokes_are_read_as_drawn_in_part(data_folder, tmp_path):
    """Strokes of the heart, in which 4 is what nobody has said anything about."""
    folder = data_folder / "cardiac"
    name = sorted(path.name for path in (folder / "scribbles").glob("*.nii.gz"))[0]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).symlink_to(folder / "images" / name)
    project = Project.create(tmp_path / "project", tmp_path / "images")
    case = project.cases[0]
    project.set_labels({0: "background", 1: "right", 2: "wall", 3: "left", 4: "ignore"})
    count = io.read_header(case.images[0]).size[2]
    project.set_annotated(case.name, Annotated.of([], [(2, range(count))]))
    project.set_label(case.name, folder / "scribbles" / name)
    project.save()
    again = Project.open(project.folder)
    drawn = read_drawn(again, again.case(case.name))
    counted = drawn.label != IGNORE
    assert set(np.unique(drawn.label[counted])) == {0, 1, 2, 3}
    assert 0 < counted.mean() < 0.2 and len(drawn.places) == count
