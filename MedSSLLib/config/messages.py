"""Settings that do not fit, in plain words: the setting as it is typed, what was given, what is
allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from MedSSLLib.core.errors import InputError

_ALLOWED = {
    "literal_error": "one of {expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of at most {max_length}",
    "finite_number": "a finite number",
    "missing": "given",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": 'a list such as [8, 16] or ["a", "b"]',
    "dict_type": "names with values",
    "model_type": "names with values",
}


AnySettings = TypeVar("AnySettings", bound=BaseModel)


def chosen(model: type[AnySettings], options: Mapping[str, Any]) -> AnySettings:
    """What is set under ``options``: the settings of a method or of a command of its own.

    Raises:
        InputError: an option that does not exist, or a value that does not fit.
    """
    try:
        return model(**options)
    except ValidationError as error:
        raise refusal(error, model, "options.") from None


def refusal(error: ValidationError, model: type[BaseModel], prefix: str = "") -> InputError:
    """The first finding of pydantic as an InputError; `prefix` is what ``--set`` has before a
    method's own settings.
    """
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    key = prefix + ".".join(place)
    if first["type"] == "extra_forbidden":
        return unknown(key, (prefix + name for name in model.model_fields))
    allowed = _ALLOWED.get(first["type"], "").format(**first.get("ctx", {}))
    finding = f"must be {allowed}" if allowed else first["msg"][:1].lower() + first["msg"][1:]
    given = f" is {_short(first['input'])}, it" if first["type"] != "missing" else ""
    return InputError(f"setting {key!r}{given} {finding}", remedy=_description(model, place))


def unknown(key: str, names: Iterable[str]) -> InputError:
    """A setting that does not exist, with the one that was probably meant."""
    names = list(names)
    leaves = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = get_close_matches(key, names, n=1, cutoff=0.75)
    near = near or [
        leaves[leaf] for leaf in get_close_matches(key.rpartition(".")[2], leaves, n=1, cutoff=0.75)
    ]
    hint = f"Did you mean {near[0]!r}?" if near else "`medssl settings COMMAND` lists them."
    return InputError(f"setting {key!r} does not exist", remedy=hint)


def _description(model: type[BaseModel], place: list[str]) -> str:
    """What the setting is, from its field's description."""
    text, kind = "", model
    for part in place:
        field = kind.model_fields.get(part)
        if field is None:
            break
        text = field.description or text
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            kind = field.annotation
    return f"It means: {text}" if text else "`medssl settings COMMAND` explains every setting."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
