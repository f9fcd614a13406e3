"""Kind 6: segmentations as 3D Slicer saves them. The files are written by hand, as Slicer does."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.evaluation.evaluate import evaluate_folder
from MedSSLLib.images import io
from MedSSLLib.project.project import Project
from Testing.lib.fidelity.files import AFFINE, save, scan
from Testing.lib.fidelity.registry import REFUSED, WARNED, Check, variant

KIND = "6 segmentations of Slicer"


def seg(
    path: Path,
    array: np.ndarray,
    names: Sequence[str],
    *,
    first: tuple[int, int, int] = (0, 0, 0),
    modern: bool = True,
    values: Sequence[int] = (),
    layers: Sequence[int] = (),
    affine: np.ndarray = AFFINE,
) -> Path:
    """A .seg.nrrd; array [i, j, k] or [layer, i, j, k], its first voxel at `first` of the scan."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    origin = (lps @ [*first, 1])[:3]
    axes = " ".join("(" + ",".join(f"{v:.10g}" for v in lps[:3, a]) + ")" for a in range(3))
    four = array.ndim == 4
    lines = ["NRRD0004", "type: unsigned char", f"dimension: {array.ndim}"]
    lines += ["space: left-posterior-superior", "sizes: " + " ".join(map(str, array.shape))]
    lines += [f"space directions: {'none ' if four else ''}{axes}"]
    lines += [f"kinds: {'list ' if four else ''}domain domain domain", "encoding: gzip"]
    lines += ["space origin: (" + ",".join(f"{v:.10g}" for v in origin) + ")"]
    for n, name in enumerate(names):
        lines += [f"Segment{n}_ID:=Segment_{n + 1}", f"Segment{n}_Name:={name}"]
        lines += [f"Segment{n}_Extent:=0 -1 0 -1 0 -1"]
        if modern:
            value = values[n] if values else n + 1
            lines += [f"Segment{n}_LabelValue:={value}"]
            lines += [f"Segment{n}_Layer:={layers[n] if layers else 0}"]
    lines += ["Segmentation_ContainedRepresentationNames:=Binary labelmap|"]
    lines += [f"Segmentation_{'Source' if modern else 'Master'}Representation:=Binary labelmap"]
    lines += ["Segmentation_ReferenceImageExtentOffset:=" + " ".join(map(str, first))]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = gzip.compress(array.astype(np.uint8).tobytes(order="F"))
    path.write_bytes(("\n".join(lines) + "\n\n").encode() + content)
    return path


def cropped(label: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    where = np.argwhere(label)
    low, high = where.min(0), where.max(0) + 1
    part = label[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return part, (int(low[0]), int(low[1]), int(low[2]))


def taken(folder: Path, labels: dict[str, np.ndarray]) -> Project:
    """A project of the folders images and labels, in which each case shows what it should."""
    project = Project.create(folder / "p", folder / "images", labels=folder / "labels")
    if project.refused:
        raise project.refused[0]
    for name, expected in labels.items():
        case = project.case(name)
        assert case.label is not None
        grid = io.read_header(case.images[0])
        seen = io.read_label(case.label, grid, names=project.labels).array.T
        assert np.array_equal(seen, expected), f"{name} shows {np.unique(seen)}"
    return project


def one(change: Any) -> Check:
    """A case whose segmentation `change` writes to (path, label); left is 1, right is 2."""

    def check(folder: Path) -> str | None:
        image, label = scan()
        save(folder / "images" / "c.nii.gz", image)
        change(folder / "labels" / "c.seg.nrrd", label)
        taken(folder, {"c": label})
        return None

    return check


def _layers(label: np.ndarray) -> np.ndarray:
    return np.stack([label == 1, label == 2])


BOTH = ("left", "right")
variant(KIND, "one layer")(one(lambda path, label: seg(path, label, BOTH)))
variant(KIND, "cropped")(
    one(lambda path, label: seg(path, cropped(label)[0], BOTH, first=cropped(label)[1]))
)
variant(KIND, "two layers")(
    one(lambda path, label: seg(path, _layers(label), BOTH, values=(1, 1), layers=(0, 1)))
)
variant(KIND, "two layers of before 4.11, without values and layers")(
    one(lambda path, label: seg(path, _layers(label), BOTH, modern=False))
)
variant(KIND, "one layer of before 4.11")(
    one(lambda path, label: seg(path, label, BOTH, modern=False))
)


@variant(KIND, "empty: one voxel", WARNED)
def empty(folder: Path) -> str | None:
    image, label = scan()
    save(folder / "images" / "a.nii.gz", image)
    save(folder / "images" / "b.nii.gz", scan(1)[0])
    seg(folder / "labels" / "a.seg.nrrd", label, BOTH)
    seg(folder / "labels" / "b.seg.nrrd", np.zeros((1, 1, 1)), BOTH)
    project = taken(folder, {"a": label, "b": label * 0})
    assert [case.name for case in project.labelled] == ["a", "b"]
    return "; ".join(project.warnings) or None


@variant(KIND, "empty: no segment at all", WARNED)
def no_segment(folder: Path) -> str | None:
    image, label = scan()
    save(folder / "images" / "a.nii.gz", image)
    save(folder / "images" / "b.nii.gz", scan(1)[0])
    seg(folder / "labels" / "a.seg.nrrd", label, BOTH)
    seg(folder / "labels" / "b.seg.nrrd", np.zeros((1, 1, 1)), ())
    return "; ".join(taken(folder, {"a": label, "b": label * 0}).warnings) or None


@variant(KIND, "a drawn slice is one slice")
def one_slice(folder: Path) -> str | None:
    image, label = scan()
    save(folder / "images" / "c.nii.gz", image)
    for axis, where in enumerate(np.array(label.shape) // 2):
        box: list[Any] = [slice(None)] * 3
        box[axis] = slice(where, where + 1)
        drawn = np.zeros_like(label)
        drawn[tuple(box)] = label[tuple(box)]
        part, first = cropped(drawn)
        assert part.shape[axis] == 1
        path = seg(folder / "labels" / "c.seg.nrrd", part, BOTH, first=first)
        seen = io.read_label(path, io.read_header(folder / "images" / "c.nii.gz")).array
        assert np.array_equal(seen.T, drawn)
    return None


def other_order(values: Sequence[int], names: Sequence[str]) -> Check:
    """Case a has left 1 and right 2, case b the same structures in another order."""

    def check(folder: Path) -> str | None:
        labels = {}
        for name, kinds, numbers in (("a", BOTH, (1, 2)), ("b", names, values)):
            image, label = scan(ord(name))
            save(folder / "images" / f"{name}.nii.gz", image)
            of_left = numbers[[kind.casefold().strip() for kind in kinds].index("left")]
            of_right = numbers[[kind.casefold().strip() for kind in kinds].index("right")]
            stored = np.array([0, of_left, of_right])[label]
            seg(folder / "labels" / f"{name}.seg.nrrd", stored, kinds, values=numbers)
            labels[name] = label
        project = taken(folder, labels)
        assert project.labels == {0: "background", 1: "left", 2: "right"}
        return None

    return check


variant(KIND, "segments in another order")(other_order((1, 2), ("right", "left")))
variant(KIND, "segments with other values")(other_order((7, 4), ("left", "right")))
variant(KIND, "names in other case")(other_order((1, 2), ("Right", "LEFT ")))


@variant(KIND, "a case with a segment more, of a value that is taken")
def one_more(folder: Path) -> str | None:
    image, label = scan()
    save(folder / "images" / "a.nii.gz", image)
    save(folder / "images" / "b.nii.gz", image)
    seg(folder / "labels" / "a.seg.nrrd", label, BOTH)
    seg(folder / "labels" / "b.seg.nrrd", label, ("cyst", "left"))
    project = taken(folder, {"a": label, "b": np.array([0, 3, 1])[label]})
    assert project.labels[3] == "cyst"
    return None


@variant(KIND, "evaluated against classes that it does not name", REFUSED)
def unknown_name(folder: Path) -> str | None:
    image, label = scan()
    grid = io.read_header(save(folder / "images" / "c.nii.gz", image))
    path = seg(folder / "r" / "c.seg.nrrd", label, ("cyst", "left"))
    io.read_label(path, grid, names={0: "background", 1: "left", 2: "right"})
    raise AssertionError("a cyst was taken for the left")


@variant(KIND, "add: another order")
def added(folder: Path) -> str | None:
    image, label = scan()
    save(folder / "images" / "a.nii.gz", image)
    seg(folder / "labels" / "a.seg.nrrd", label, BOTH)
    project = taken(folder, {"a": label})
    save(folder / "more" / "b.nii.gz", image)
    path = seg(folder / "morelabels" / "b.seg.nrrd", label, ("right", "left"))
    project.add([folder / "more"], labels=folder / "morelabels")
    project.save()
    grid = io.read_header(folder / "more" / "b.nii.gz")
    seen = io.read_label(path, grid, names=Project.open(folder / "p").labels).array.T
    assert np.array_equal(seen, np.array([0, 2, 1])[label])
    return None


def evaluated(folder: Path, classes: dict[str, int] | None) -> None:
    result = evaluate_folder(folder / "predictions", folder / "references", None, classes=classes)
    if result["errors"]:
        raise InputError(next(iter(result["errors"].values())), remedy="as it says")
    for case, rows in result["cases"].items():
        for kind, row in rows.items():
            assert row["dice"] in (1.0, None), f"{case}, {kind}: Dice {row['dice']}"


@variant(KIND, "evaluate: cropped reference in another order")
def cropped_reference(folder: Path) -> str | None:
    label = scan()[1]
    save(folder / "predictions" / "c.nii.gz", label)
    part, first = cropped(np.array([0, 2, 1])[label])
    seg(folder / "references" / "c.seg.nrrd", part, ("right", "left"), first=first)
    evaluated(folder, {"left": 1, "right": 2})
    return None


@variant(KIND, "evaluate: cropped reference, no project")
def cropped_reference_alone(folder: Path) -> str | None:
    label = scan()[1]
    save(folder / "predictions" / "c.nii.gz", label)
    part, first = cropped(label)
    seg(folder / "references" / "c.seg.nrrd", part, BOTH, first=first)
    evaluated(folder, None)
    return None


@variant(KIND, "evaluate: two segmentations, cropped differently")
def two_segmentations(folder: Path) -> str | None:
    label = scan()[1]
    part, first = cropped(label)
    seg(folder / "references" / "c.seg.nrrd", part, BOTH, first=first)
    seg(folder / "predictions" / "c.seg.nrrd", np.array([0, 2, 1])[label], ("right", "left"))
    evaluated(folder, None)
    return None


@variant(KIND, "evaluate: empty reference")
def empty_reference(folder: Path) -> str | None:
    save(folder / "predictions" / "c.nii.gz", scan()[1] * 0)
    seg(folder / "references" / "c.seg.nrrd", np.zeros((1, 1, 1)), BOTH)
    evaluated(folder, {"left": 1, "right": 2})
    return None


@variant(KIND, "segments overlap", REFUSED)
def overlap(folder: Path) -> str | None:
    label = scan()[1]
    save(folder / "images" / "c.nii.gz", scan()[0])
    layers = np.stack([label > 0, label == 2])
    seg(folder / "labels" / "c.seg.nrrd", layers, BOTH, values=(1, 1), layers=(0, 1))
    taken(folder, {})
    raise AssertionError("one of two was dropped")


def beside(names: Sequence[str], cases: Sequence[str]) -> Check:
    """Files of one folder: those with seg, label or mask in their names are labels."""

    def check(folder: Path) -> str | None:
        image, label = scan()
        for name in names:
            path = folder / "scans" / name
            if name.endswith(".seg.nrrd"):
                seg(path, label, BOTH)
            elif io.case_name(name) in cases:
                save(path.with_name("x.nii.gz"), image)
                io.write_image(path, io.read_image(path.with_name("x.nii.gz")))
                path.with_name("x.nii.gz").unlink()
            else:
                save(path, label)
        project = Project.create(folder / "p", folder / "scans")
        if project.refused:
            raise project.refused[0]
        assert [case.name for case in project.cases] == list(cases)
        assert all(case.label for case in project.labelled)
        return "; ".join(project.warnings) or None

    return check


variant(KIND, "p.seg.nrrd beside p.nrrd", WARNED)(
    beside(["p.nrrd", "p.seg.nrrd", "q.nrrd", "q.seg.nrrd"], ["p", "q"])
)
variant(KIND, "p.seg.nrrd beside p.nii.gz, q without", WARNED)(
    beside(["p.nii.gz", "p.seg.nrrd", "q.nii.gz"], ["p", "q"])
)


variant(KIND, "two segments of one name", REFUSED)(
    one(lambda path, label: seg(path, label, ("left", "Left ")))
)


@variant(KIND, "Segment_1 has the value of a class that another segment is called by", REFUSED)
def one_value_for_two(folder: Path) -> str | None:
    image, label = scan()
    grid = io.read_header(save(folder / "images" / "c.nii.gz", image))
    path = seg(folder / "c.seg.nrrd", label, ("Segment_1", "left"))
    io.read_label(path, grid, names={0: "background", 1: "left", 2: "right"})
    raise AssertionError("two segments became one")


def unnamed_value(values: Sequence[int], shown: Sequence[int]) -> Check:
    """A segmentation of left and right with these values, painted with those shown: the third is
    that of no segment.
    """

    def check(folder: Path) -> str | None:
        image, label = scan()
        label[2, 2, 2:5] = 3
        save(folder / "images" / "c.nii.gz", image)
        seg(folder / "labels" / "c.seg.nrrd", np.array([0, *shown])[label], BOTH, values=values)
        try:
            taken(folder, {})
        except InputError as error:
            assert error.case == "c" and f"3 voxels of the value {shown[2]}," in error.finding
            raise
        raise AssertionError("a value without a name became a class or background")

    return check


variant(KIND, "a value that no segment names", REFUSED)(unnamed_value((1, 2), (1, 2, 3)))
variant(KIND, "a value that no segment names, segments with other values", REFUSED)(
    unnamed_value((7, 4), (7, 4, 5))
)


@variant(KIND, "a value that no segment names, in the second layer", REFUSED)
def unnamed_in_layer(folder: Path) -> str | None:
    image, label = scan()
    grid = io.read_header(save(folder / "images" / "c.nii.gz", image))
    layers = _layers(label) * np.array([1, 2]).reshape(2, 1, 1, 1)
    layers[1, 2, 2, 2:5] = 1
    path = seg(folder / "c.seg.nrrd", layers, BOTH, values=(1, 2), layers=(0, 1))
    io.read_label(path, grid, names={1: "left", 2: "right"})
    raise AssertionError("a value without a name became background")


def oversampled(factor: int) -> Check:
    """A segmentation on a finer grid, with specks between the centres of the image's voxels."""

    def check(folder: Path) -> str | None:
        image, label = scan()
        save(folder / "images" / "c.nii.gz", image)
        fine = np.repeat(np.repeat(np.repeat(label, factor, 0), factor, 1), factor, 2)
        for n in range(4):
            fine[factor * (3 * n + 1) : factor * (3 * n + 1) + 1, 0, factor - 1] = 2
        start = -0.5 + 0.5 / factor
        scaled = np.diag([1 / factor] * 3 + [1.0])
        scaled[:3, 3] = start
        path = seg(folder / "labels" / "c.seg.nrrd", fine, BOTH, affine=AFFINE @ scaled)
        project = Project.create(folder / "p", folder / "images", labels=folder / "labels")
        grid = io.read_header(folder / "images" / "c.nii.gz")
        seen = io.read_label(path, grid, names=project.labels).array.T
        kept = [int(seen[3 * n + 1, 0, 0]) for n in range(4)]
        assert kept == [2] * 4, f"specks became {kept}"
        seen[1:12:3, 0, 0] = 0
        assert np.array_equal(seen, label)
        return None

    return check


for factor in (2, 3, 4):
    variant(KIND, f"{factor} times finer than the image, with specks")(oversampled(factor))
