"""Where the demo's scans come from: simulated, downloaded, or a folder of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import load_json
from MedSSLLib.data.random import Stream, random_stream
from MedSSLLib.demo.recipes import SAMPLE_SETS
from MedSSLLib.project.project import Project

LABELLED = 2
_DOWNLOADS = {"hippocampus": "Task04_Hippocampus"}


@dataclass(frozen=True)
class Cohort:
    """Scans for the demo: name, folder, words for the report, and splits where it has them."""

    name: str
    folder: Path
    words: str
    splits: dict[str, Any] | None = None

    def project(self, out: Path, seed: int) -> Project:
        """A project with two labelled subjects and test cases, by the splits or drawn at random.

        Raises:
            InputError: fewer than six cases with a label, or splits that do not fit the folder.
        """
        images = self.folder / "images" if (self.folder / "images").is_dir() else self.folder
        labels: Path | None = self.folder / "labels"
        metadata = self.folder / "metadata.csv"
        if (self.folder / "dataset.json").is_file():  # it names the labels itself
            images, labels = self.folder, None
        test, labelled = "", None
        if self.splits is not None:
            test, labelled = map(",".join, _from_splits(self.splits, self.folder))
        project = Project.create(
            out,
            images,
            labels=labels if labels and labels.is_dir() else None,
            metadata=metadata if metadata.is_file() else None,
            labelled=labelled,
            test=test,
        )
        if self.splits is None:
            _draw_roles(project, seed)
            project.save()
        return project


def gather(data: str, out: Path, seed: int, events: Events) -> Cohort:
    """The cohort that ``--data`` asks for; simulated and downloaded scans are kept in ``out``.

    Raises:
        InputError: the folder does not exist.
        MedSSLError: nothing could be downloaded.
    """
    if data == "simulated":
        return _simulated(out / "cohort", seed, events)
    if data in _DOWNLOADS:
        return _downloaded(_DOWNLOADS[data], out / "download")
    if data in SAMPLE_SETS:
        return _sampled(data, out / "cohort", seed, events)
    folder = Path(data)
    if not folder.is_dir():
        known = ", ".join(("simulated", *_DOWNLOADS, *SAMPLE_SETS))
        raise InputError(
            "is not a folder",
            file=folder,
            remedy=f"Use {known} or a folder with images/ and labels/",
        )
    splits = folder / "splits.json"
    return Cohort(
        folder.resolve().name,
        folder,
        f"Scans from the folder {folder.name}.",
        load_json(splits) if splits.is_file() else None,
    )


def _simulated(folder: Path, seed: int, events: Events) -> Cohort:
    from MedSSLLib.demo.simulate import simulate_cohort

    simulate_cohort(
        folder, seed=seed, progress=lambda done, total: events.progress("simulate", done, total)
    )
    words = (
        "24 brains simulated from the ICBM152 template: random anatomy, three scanners with "
        "their own resolution, "
        "orientation, contrast and grey scale, bias fields and noise. Simulated scans are easier "
        "than real ones."
    )
    return Cohort("brains", folder, words, load_json(folder / "splits.json"))


def _sampled(name: str, folder: Path, seed: int, events: Events) -> Cohort:
    from MedSSLLib.demo.sets import write_sample_set

    recipe = write_sample_set(
        name,
        folder,
        seed=seed,
        progress=lambda done, total: events.progress("simulate", done, total),
    )
    words = f"{recipe.title}: 24 simulated patients of one body. Real: {recipe.real}."
    return Cohort(name, folder, words, load_json(folder / "splits.json"))


def _downloaded(task: str, folder: Path) -> Cohort:
    """A Medical Segmentation Decathlon task, fetched and checked by MONAI."""
    from monai.apps import DecathlonDataset, download_and_extract

    folder.mkdir(parents=True, exist_ok=True)
    url, md5 = DecathlonDataset.resource[task], DecathlonDataset.md5[task]
    try:
        download_and_extract(
            url, folder / f"{task}.tar", folder, hash_val=md5, hash_type="md5", progress=False
        )
    except Exception as error:
        raise MedSSLError(
            f"{task} could not be downloaded from {url}: {error}. Check the network, or use "
            "--data simulated."
        ) from error
    return Cohort(
        "hippocampus",
        folder / task,
        f"{task} of the Medical Segmentation Decathlon (Antonelli et al. 2022, CC-BY-SA 4.0).",
    )


def _from_splits(splits: Any, folder: Path) -> tuple[list[str], list[str]]:
    """Test cases, and the first choice of two labelled ones.

    Else the first of the smallest number there is.
    """
    try:
        choices = splits["labelled"]
        count = str(LABELLED) if str(LABELLED) in choices else min(choices, key=int)
        return [str(name) for name in splits["test"]], [str(name) for name in choices[count][0]]
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError(
            "does not hold test and labelled cases",
            file=folder / "splits.json",
            remedy='Write {"test": [...], "labelled": {"2": [[...], ...]}}, or remove the file',
        ) from None


def _draw_roles(project: Project, seed: int) -> None:
    """A quarter of the patients with a label for testing, two of the others labelled.

    At most 40 are test cases.
    """
    usable = [case for case in project.cases if case.label is not None]
    patients = sorted({case.patient for case in usable})
    if len(patients) < 3 * LABELLED:
        raise InputError(
            f"{len(patients)} subjects have a label, the demo needs {3 * LABELLED}",
            file=project.folder,
            remedy="Give a folder with images/ and labels/ of the same names",
        )
    order = random_stream(seed, Stream.DEMO_TEST_PATIENTS).permutation(len(patients)).tolist()
    tested = {patients[n] for n in order[: min(40, max(1, len(order) // 4))]}
    chosen = {patients[n] for n in order[-LABELLED:]}

    def names(group: set[str]) -> str:
        return ",".join(case.name for case in usable if case.patient in group)

    project.set_roles(test=names(tested), labelled=names(chosen))
