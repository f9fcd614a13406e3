"""Tests that go through many small cases and name every one that fails, not only the first."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest


def each(
    names: str | Sequence[str],
    values: Iterable[Any],
    ids: Iterable[str] | Callable[[Any], object] | None = None,
) -> Callable[[Callable], Callable]:
    """Like `pytest.mark.parametrize`, in one test: all cases run, and all that fail are named.

    A case has a `tmp_path` and a `monkeypatch` of its own and sees none of the output that another
    one left in `capsys`; other fixtures are shared by the cases. Decorators may be stacked. Where
    cases take seconds, or change what a fixture gives, `parametrize` is better.
    """
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    alone = isinstance(names, str) and len(wanted) == 1
    rows = [(value,) if alone else tuple(value) for value in values]
    words = _words(rows, ids)

    def decorate(test: Callable) -> Callable:
        signature = inspect.signature(test)
        assert set(wanted) <= set(signature.parameters), f"{test.__name__} does not take {names}"

        @functools.wraps(test)
        def looped(*own: Any, **fixtures: Any) -> None:
            failed, skipped = {}, []
            for number, (word, row) in enumerate(zip(words, rows, strict=True)):
                with _fresh(fixtures, number) as given:
                    try:
                        test(*own, **given, **dict(zip(wanted, row, strict=True)))
                    except pytest.skip.Exception as reason:
                        skipped.append(reason)
                    except (Exception, pytest.fail.Exception) as error:
                        error.add_note(f"in the case {word}")
                        failed[f"{number}: {word}"] = error
            if failed:
                names = "; ".join(failed)
                text = f"{len(failed)} of {len(rows)} cases fail: {names}"
                raise BaseExceptionGroup(text, list(failed.values()))
            if skipped and len(skipped) == len(rows):
                raise skipped[0]

        kept = [p for name, p in signature.parameters.items() if name not in wanted]
        looped.__signature__ = signature.replace(parameters=kept)  # what pytest fills in
        return looped

    return decorate


def _words(rows: list[tuple], ids: Any) -> list[str]:
    """What each case is called."""
    if ids is None:
        return [", ".join(repr(value)[:60] for value in row) for row in rows]
    if callable(ids):
        return [", ".join(str(ids(value)) for value in row) for row in rows]
    words = [str(word) for word in ids]
    assert len(words) == len(rows), "a name for each case"
    return words


@contextmanager
def _fresh(fixtures: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """The fixtures of one case."""
    given = dict(fixtures)
    with ExitStack() as stack:
        if "tmp_path" in given:
            given["tmp_path"] = given["tmp_path"] / f"case-{number}"
            given["tmp_path"].mkdir()
        if "monkeypatch" in given:
            given["monkeypatch"] = stack.enter_context(given["monkeypatch"].context())
        if "capsys" in given:
            given["capsys"].readouterr()
        yield given
