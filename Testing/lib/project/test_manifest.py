"""Manifest and metadata table: what is read, kept and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.project.manifest import (
    Case,
    Manifest,
    parse_labels,
    parse_modality,
    read_manifest,
    with_ignore_value,
    write_manifest,
)
from MedSSLLib.project.metadata import read_metadata
from MedSSLLib.project.project import Project
from Testing.lib.case_helpers import each

Make = Callable[..., Volume]


class TestManifest:
    def test_unknown_keys_are_kept(self, project: Project) -> None:
        path = project.folder / "medssl.json"
        write_json(path, read_json(path) | {"licence": "CC", "reference": {"a": 1}})
        again = Project.open(project.folder)
        again.set_metadata("canonical", {})
        again.save()
        assert read_json(path)["reference"] == {"a": 1}

    def test_channels_and_annotations_survive(self, tmp_path: Path) -> None:
        case = Case(
            "a",
            (tmp_path / "a0.nii", tmp_path / "a1.nii"),
            None,
            Annotated.of([(1, [2])]),
            "test",
            {"k": "v"},
        )
        write_manifest(tmp_path, Manifest("n", ("MR", "CT"), {0: "bg", 7: "x"}, None, {"a": case}))
        assert read_manifest(tmp_path) == Manifest(
            "n", ("MR", "CT"), {0: "bg", 7: "x"}, None, {"a": case}
        )

    @settings(max_examples=80, deadline=None)
    @given(data=st.data())
    def test_damaged_manifests_never_give_a_traceback(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.mktemp("p")
        content: dict[str, Any] = {
            "format": "medssl-project",
            "format_version": 1,
            "name": "x",
            "modality": {"0": "MR"},
            "labels": {"0": "background", "1": "a"},
            "labels_from": ["c"],
            "training": [
                {
                    "name": "c",
                    "image": "c.nii",
                    "label": "l.nii",
                    "annotated": [{"axis": 2, "indices": [1]}],
                    "role": "labelled",
                    "metadata": {"a": "b"},
                }
            ],
            "test": [],
        }
        junk = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=6,
        )
        target = data.draw(st.sampled_from([content, content["training"][0]]))
        target[data.draw(st.sampled_from(sorted(target)))] = data.draw(junk)
        (folder / "medssl.json").write_text(json.dumps(content), encoding="utf-8")
        try:
            opened = Project.open(folder)
        except InputError as error:
            assert error.file and error.remedy
        else:
            assert opened.classes and opened.modality and isinstance(opened.cases, tuple)
            opened.save()

    def test_labels_in_both_directions(self) -> None:
        assert parse_labels({"0": "background", "2": "b", "1": "a"}) == {
            0: "background",
            1: "a",
            2: "b",
        }
        assert parse_labels({"background": 0, "liver": 1}) == {0: "background", 1: "liver"}
        assert parse_labels({}) == {0: "background"}

    @each(
        "entries",
        [
            [],
            "x",
            {"a": [1, 2]},
            {"-1": "a"},
            {"1": ""},
            {"1": "a", "01": "b"},
            {"1": "a", "2": "a"},
            {"a": -1},
            {"a": True},
            {"1.5": "a"},
            {"x": "y"},
            {str(10**30): "a"},
        ],
    )
    def test_impossible_labels(self, entries: Any) -> None:
        with pytest.raises(InputError):
            parse_labels(entries)

    def test_modality(self) -> None:
        assert parse_modality({"0": "MRI", "1": "ct"}) == ("MR", "CT")
        for bad in ({}, [], "MR", {"0": 1}, None):
            with pytest.raises(InputError):
                parse_modality(bad)


class TestMetadata:
    @each(
        "content",
        [
            b'case,patient,age\na,P1,\nb,"P,2",3\n',
            b'\xef\xbb\xbfcase;patient;age\r\na;P1;\r\nb;"P,2";3\r\n',
            b"case\tpatient\tage\na\tP1\t\nb\tP,2\t3\n\n",
            b'Age,CASE,patient\n,a,P1\n3,b,"P,2"\n',
        ],
    )
    def test_dialects(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.csv").write_bytes(content)
        table = {
            case: {key.lower(): value for key, value in entry.items()}
            for case, entry in read_metadata(tmp_path / "m.csv").items()
        }
        assert table == {"a": {"patient": "P1"}, "b": {"patient": "P,2", "age": "3"}}

    def test_latin_1(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_bytes("case,name\na,Zoë\n".encode("latin-1"))
        assert read_metadata(tmp_path / "m.csv") == {"a": {"name": "Zoë"}}

    @settings(max_examples=200, deadline=None)
    @given(
        content=st.binary(max_size=120) | st.text('case,;\t"\n\rab\0', max_size=60).map(str.encode)
    )
    def test_any_bytes(self, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
        path = tmp_path_factory.mktemp("m") / "m.csv"
        path.write_bytes(content)
        try:
            read_metadata(path)
        except InputError as error:
            assert error.file == str(path) and error.remedy

    def test_patient_columns(self) -> None:
        assert Case("c", (), metadata={"patient_id": "P"}).patient == "P"
        assert Case("c", (), metadata={"Patient": "P"}).patient == "P"
        assert Case("c", (), metadata={"patient": ""}).patient == "c"

    @each("text", ["unknown", "NA", "n/a", " None ", "nan", "?", "  "])
    def test_unknown_patients_are_not_one_patient(self, text: str) -> None:
        assert [Case(name, (), metadata={"patient": text}).patient for name in "ab"] == ["a", "b"]
        assert Case("a", (), metadata={"patient": text, "patient_id": "P"}).patient == "P"


class TestPartlyDrawn:
    @each("names, value", [({1: "a"}, 255), ({1: "a", 255: "b"}, 254), ({1: "a", 4: "Ignore"}, 4)])
    def test_the_first_one_brings_a_value_that_does_not_count(
        self, project: Project, names: dict[int, str], value: int
    ) -> None:
        project.set_labels({0: "background", **names})
        name = project.cases[0].name
        project.set_annotated(name, Annotated.of([(2, [1])]))
        assert (project.ignore_value is None) == (value != 4), "whole slices need none"
        project.set_annotated(name, Annotated.of([(2, [1, 2])], [(2, [2])]))
        project.save()
        again = Project.open(project.folder)
        assert again.ignore_value == value and value not in again.values
        assert again.case(name).annotated == Annotated.of([(2, [1, 2])], [(2, [2])])

    def test_without_a_free_value_it_is_refused(self) -> None:
        full = Manifest("full", labels={value: f"c{value}" for value in range(256)})
        with pytest.raises(InputError, match="a class for every label value"):
            with_ignore_value(full)
