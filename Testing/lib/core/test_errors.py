"""Errors: what the message says, exit codes, safety in a terminal, travelling between processes."""

from __future__ import annotations

import pickle

import pytest

from MedSSLLib.core.errors import (
    CancelledError,
    GuardError,
    InputError,
    MedSSLError,
    naming,
    printable,
)
from Testing.lib.case_helpers import each


def test_message_names_case_file_finding_and_remedy() -> None:
    error = InputError("has 3 channels.", case="c1", file="/data/c1.nii.gz", remedy="Give scalars.")
    assert str(error) == "c1: /data/c1.nii.gz: has 3 channels. Give scalars."


@each(
    ("fields", "text"),
    [
        ({}, "is bad."),
        ({"case": "a"}, "a: is bad."),
        ({"file": "f"}, "f: is bad."),
        ({"remedy": "Do."}, "is bad. Do."),
    ],
)
def test_parts_that_are_not_given_are_left_out(fields: dict[str, str], text: str) -> None:
    assert str(InputError("is bad", **fields)) == text


def test_exit_codes_are_those_of_the_command_line() -> None:
    assert [kind.exit_code for kind in (MedSSLError, InputError, CancelledError, GuardError)] == [
        1,
        2,
        3,
        4,
    ]
    assert all(issubclass(kind, MedSSLError) for kind in (InputError, GuardError))


def test_a_stop_is_no_failure_that_code_may_go_on_after():
    with pytest.raises(CancelledError):
        try:
            raise CancelledError("stop")
        except Exception:
            pytest.fail("taken for a failure")


def test_unprintable_text_is_escaped() -> None:
    assert printable("a\x1b[31m\n\u202eé") == "a\\x1b[31m\\n\\u202eé"
    assert "\x1b" not in str(InputError("\x1b[2J", case="\x07", file="a\nb"))


def test_lone_surrogates_from_undecodable_file_names_can_be_printed() -> None:
    str(InputError("is bad", file=b"caf\xe9".decode("utf-8", "surrogateescape"))).encode("utf-8")


def test_input_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(InputError("x", case="c", file="f", remedy="r")))  # noqa: S301
    assert (error.finding, error.case, error.file, error.remedy) == ("x", "c", "f", "r")


def test_for_case_and_naming_fill_in_only_what_is_missing() -> None:
    assert InputError("x").for_case("c").case == "c"
    assert InputError("x", case="a").for_case("c").case == "a"
    with pytest.raises(InputError) as caught, naming("c", "f"):
        raise InputError("x", file="g", remedy="r")
    assert (caught.value.case, caught.value.file, caught.value.remedy) == ("c", "g", "r")
