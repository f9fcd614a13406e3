"""What is set under ``options``: which settings a method, or a command without a choice of methods,
has of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from MedSSLLib.config.messages import chosen
from MedSSLLib.methods import METHODS, load_method

if TYPE_CHECKING:
    from pydantic import BaseModel


def own_options(command: str, method: str, given: Mapping[str, Any]) -> BaseModel | None:
    """The settings of their own with those given; None where there are none.

    Raises:
        InputError: an option that does not exist, or a value that does not fit.
    """
    if command == "selftrain":
        from MedSSLLib.config.commands import SelfTrainConfig

        return chosen(SelfTrainConfig, given)
    if command == "complete":
        from MedSSLLib.config.commands import CompletionConfig

        return chosen(CompletionConfig, given)
    return (
        chosen(load_method(method).Config, given)
        if command == "pretrain" and method in METHODS
        else None
    )
