"""Settings of a run that learns by a method: its presets, and what is set under ``options``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from MedSSLLib.config.messages import chosen
from MedSSLLib.config.run import CommandName, Preset, RunConfig
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
        preset: quick, standard or paper.
        method: of pre-training; other commands have one each.
        overrides: values by dotted key, such as ``{"optimiser.lr": "1e-3"}``.

    Raises:
        InputError: a key does not exist or a value does not fit, naming the nearest key.
    """
    of_method: Mapping[str, Any] = {}
    if command == "pretrain" and method in known_methods():
        of_method = load_method(method).Config.presets.get(preset, {})
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
    if command == "pretrain" and method in known_methods():
        return chosen(load_method(method).Config, given)
    return None
