"""What a project's manifest says of its cases, classes and channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MedSSLLib.project.manifest import Case, Manifest, ignore_value


class ProjectFacts:
    """The part of a project that is read from its manifest alone."""

    _manifest: Manifest

    @property
    def name(self) -> str:
        """The project's name."""
        return self._manifest.name

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases, sorted by name."""
        return tuple(self._manifest.cases[name] for name in sorted(self._manifest.cases))

    @property
    def files(self) -> list[Path]:
        """The images and labels of all cases, whatever their roles."""
        return [path for case in self.cases for path in (*case.images, case.label) if path]

    @property
    def labelled(self) -> tuple[Case, ...]:
        """Cases whose labels may be read for training and selection."""
        return tuple(case for case in self.cases if case.role == "labelled")

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        """Cases that are used as images alone (they may have a label, which is not read)."""
        return tuple(case for case in self.cases if case.role == "unlabelled")

    @property
    def test(self) -> tuple[Case, ...]:
        """Cases that training never reads."""
        return tuple(case for case in self.cases if case.role == "test")

    @property
    def pool(self) -> tuple[Case, ...]:
        """All cases but the test cases."""
        return tuple(case for case in self.cases if case.role != "test")

    @property
    def labels(self) -> dict[int, str]:
        """Names of the values that label files hold, including 0 and a value to be ignored."""
        return dict(self._manifest.labels)

    @property
    def ignore_value(self) -> int | None:
        """The label value that means "does not count" (named "ignore", as nnU-Net does), None
        without one.
        """
        return ignore_value(self._manifest.labels)

    @property
    def values(self) -> tuple[int, ...]:
        """Label values, sorted; a value's position is its class index."""
        return tuple(value for value in sorted(self._manifest.labels) if value != self.ignore_value)

    @property
    def named_values(self) -> dict[int, str]:
        """Label values in class order, with their names."""
        return {value: self._manifest.labels[value] for value in self.values}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by class index, background first."""
        return tuple(self._manifest.labels[value] for value in self.values)

    @property
    def scored(self) -> dict[str, int]:
        """Names and label values of everything but the background, a value to be ignored included,
        by value.
        """
        return {name: value for value, name in sorted(self._manifest.labels.items()) if value}

    @property
    def modality(self) -> str:
        """Modality of the first channel: "MR", "CT", ..."""
        return self._manifest.modality[0]

    @property
    def modalities(self) -> tuple[str, ...]:
        """One modality per channel."""
        return self._manifest.modality

    @property
    def channels(self) -> int:
        """Number of channels of every case."""
        return len(self._manifest.modality)

    @property
    def extra(self) -> dict[str, Any]:
        """Keys of other programs in the manifest."""
        return dict(self._manifest.extra)
