"""Settings of a run that learns by a method: its presets, and what is set under ``options``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from MedSSLLib.config.lengths import Preset
from MedSSLLib.config.messages import chosen
from MedSSLLib.config.run import CommandName, RunConfig
from MedSSLLib.methods import known_methods, load_method

if TYPE_CHECKING:
    from pydantic import BaseModel


def configured(
    command: CommandName,
    *,
    preset: Preset = "standard",
    method: str = "supervised",
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The settings of a run: the preset, what the method changes in it, then `overrides`.

    Args:
        command: what is run.
        preset: quick, standard, overnight or paper.
        method: of pre-training; other commands have one each.
        overrides: values by dotted key, such as ``{"optimiser.lr": "1e-3"}``.

    Raises:
        InputError: a key does not exist or a value does not fit, naming the nearest key.
    """
    of_method: Mapping[str, Any] = {}
    if command == "pretrain" and method in known_methods():
        presets = load_method(method).Config.presets
        of_method = presets.get(
            preset, presets.get("standard", {}) if preset == "overnight" else {}
        )
    return RunConfig.build(
        command, preset=preset, method=method, of_method=of_method, overrides=overrides
    )


def own_options(command: str, method: str, given: Mapping[str, Any]) -> BaseModel | None:
    """The settings of a method, or of a command without a choice of methods, with those given.

    None where there are none, and for a method that is not there (its file was not named).

    Raises:
        InputError: an option that does not exist, or a value that does not fit.
    """
    if command == "selftrain":
        from MedSSLLib.config.commands import SelfTrainConfig

        return chosen(SelfTrainConfig, given)
    if command == "complete":
        from MedSSLLib.config.commands import CompletionConfig

        return chosen(CompletionConfig, given)
    if command == "live":
        from MedSSLLib.config.commands import LiveConfig

        return chosen(LiveConfig, given)
    if command == "pretrain" and method in known_methods():
        return chosen(load_method(method).Config, given)
    return None


def changed_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings that differ from the preset, as ``--set`` takes them; a number of steps instead of
    the preset's time limit by its steps.
    """
    command, preset, method = (settings.get(key) for key in ("command", "preset", "method"))
    usual = configured(command, preset=preset, method=method)  # type: ignore[arg-type]
    tree = usual.model_dump(mode="json")
    if own := own_options(usual.command, usual.method, usual.options):
        tree["options"] = own.model_dump(mode="json")
    default = dict(flat_settings(tree))
    changed = {}
    for key, value in flat_settings(settings):
        left_out = value is None and default.get(key) is not None
        words = "null" if left_out else setting_words(key, value)
        if words and key not in ("name", "labelled") and str(default.get(key)) != str(value):
            changed[key] = words
    if changed.get("training.minutes") == "null":
        del changed["training.minutes"]
        changed["training.steps"] = setting_words("training.steps", settings["training"]["steps"])
    return changed


def setting_words(key: str, value: Any) -> str:
    """A value in words; of a method's options also that it is null."""
    return "null" if value is None and key.startswith("options.") else as_typed(value)


def as_typed(value: Any) -> str:
    """A value as ``--set`` takes it; a list of names as ``--labelled`` and ``--meta`` do."""
    if isinstance(value, str):
        return value
    if value and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Settings of a nested configuration as (dotted key, value)."""
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += flat_settings(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
