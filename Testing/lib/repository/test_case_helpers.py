"""A test that goes through cases runs all of them and names those that fail."""

import inspect

import pytest

from Testing.lib.case_helpers import each


def run(test, **fixtures):
    """The text and the errors of a looped test that fails."""
    with pytest.raises(BaseExceptionGroup) as caught:
        test(**fixtures)
    return str(caught.value), caught.value.exceptions


def test_every_case_runs_and_those_that_fail_are_named():
    seen = []

    @each(("a", "b"), [(1, 2), (3, 3), (5, 6), (7, 7)], ids=["one", "two", "three", "four"])
    def test(a, b):
        seen.append(a)
        if a == 5:
            pytest.fail("as it should")
        assert a == b

    text, errors = run(test)
    assert seen == [1, 3, 5, 7]
    assert text.startswith("2 of 4 cases fail: 0: one; 2: three")
    assert [type(error) for error in errors] == [AssertionError, pytest.fail.Exception]
    assert errors[0].__notes__ == ["in the case one"]


def test_loops_are_stacked_and_what_pytest_fills_in_is_left():
    seen = []

    @each("a", range(2))
    @each("b", "xy", ids=str.upper)
    def test(a, project, b):
        seen.append((a, b))
        assert (a, b, project) != (1, "y", "p")

    assert list(inspect.signature(test).parameters) == ["project"]
    assert run(test, project="p")[0].startswith("1 of 2 cases fail: 1: 1")
    assert seen == [(0, "x"), (0, "y"), (1, "x"), (1, "y")]


def test_a_case_sees_nothing_of_the_one_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDSSL_A_TEST", "outside")

    @each("value", ["first", "second"])
    def test(value, tmp_path, monkeypatch, capsys):
        import os

        assert not list(tmp_path.iterdir()) and os.environ["MEDSSL_A_TEST"] == "outside"
        assert capsys.readouterr().out == ""
        (tmp_path / value).touch()
        monkeypatch.setenv("MEDSSL_A_TEST", value)
        print(value)

    test(tmp_path=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    assert len(list(tmp_path.rglob("*"))) == 4


def test_a_test_is_skipped_where_all_its_cases_are():
    @each("missing", [True, True])
    def all_of_them(missing):
        pytest.skip("not here")

    @each("missing", [True, False])
    def one_of_them(missing):
        if missing:
            pytest.skip("not here")

    with pytest.raises(pytest.skip.Exception):
        all_of_them()
    one_of_them()
