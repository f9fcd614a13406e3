"""The model card written with every run: data, method, figures, intended use and limits."""

from __future__ import annotations

from typing import Any

from MedSSLLib.core.files import atomic_path
from MedSSLLib.project.project import Project
from MedSSLLib.training.run_folder import RunFolder, versions

PAPERS = {
    "pgl": "Xie, Zhang, Liao, Xia, Shen 2020: PGL, prior-guided local self-supervised learning "
    "(arXiv 2011.12640)",
    "gcl": "Wu, Chen, Yan, Zhu, Chen, Wu 2023: GCL, gradient-guided contrastive learning (arXiv "
    "2309.08888)",
    "local-contrast": "Chaitanya, Erdil, Karani, Konukoglu 2021: local contrastive loss with "
    "pseudo-labels (arXiv 2112.09645)",
}


def write_model_card(run: RunFolder, project: Project, metrics: dict[str, Any]) -> None:
    """Write ``model_card.md`` into the folder of a run whose settings are recorded."""
    sections = [
        f"# {run.name}",
        "## Model\n" + _bullets(_model_facts(run)),
        "## Data\n" + _bullets(_data_facts(run, project)),
        "## Figures of the training\n" + _bullets(_in_words(metrics)),
        "## Intended use\nResearch. Segmentation of the named classes in images like those it "
        "was trained on, with every result reviewed by a person. It is not a medical device.",
        "## Limits\nTrained on few labels: expect errors on other scanners, protocols, "
        "pathologies and fields of view. Accuracy on new data is unknown until it is measured "
        "with `medssl evaluate`.",
        "## Made with\n" + _bullets(versions()),
    ]
    if run.config.method in PAPERS:
        sections.insert(2, f"## Method\n{PAPERS[run.config.method]}")
    with atomic_path(run.folder / "model_card.md") as temporary:
        temporary.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _model_facts(run: RunFolder) -> dict[str, Any]:
    config, plan = run.config, run.plan
    widths = config.network.widths[: len(plan.strides)]
    spacing = ["as scanned" if mm is None else f"{mm:g}" for mm in plan.spacing]
    facts = {
        "command": config.command,
        "method": config.method,
        "preset": config.preset,
        "network": f"{plan.dim}D U-Net, {config.network.norm} norm",
        "channels per level": ", ".join(map(str, widths)),
        "started from": config.origin,
        "grid spacing d x h x w in mm": " x ".join(spacing),
        "patch": " x ".join(map(str, plan.patch)),
        "seed": config.seed,
    }
    if run.precision is not None:
        facts["number format"] = run.precision
    return facts


def _data_facts(run: RunFolder, project: Project) -> dict[str, Any]:
    facts = {
        "project": project.name,
        "modality": ", ".join(project.modalities),
        "classes": ", ".join(project.classes),
        "cases": len(project.cases),
        "test": len(project.test),
    }
    for key in ("labelled", "validation", "unlabelled"):
        if key in run.data.model_fields_set:
            facts[key] = len(getattr(run.data, key))
    return facts


def _in_words(metrics: dict[str, Any]) -> dict[str, Any]:
    """The numbers and sentences; those of a group stand after its name.

    Lists and what was not measured are left out.
    """
    words: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            words |= {f"{key}, {name}": inner for name, inner in _in_words(value).items()}
        elif value is not None and not isinstance(value, list):
            words[key] = f"{value:.4g}" if isinstance(value, float) else value
    return words


def _bullets(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())
