"""The planted faults still fit the code."""

from Testing.faults.faults import ROOT, faults, occurrences, replaced


def test_every_fault_still_applies():
    problems = {}
    for fault in faults():
        try:
            planted = fault.planted((ROOT / fault.path).read_text(encoding="utf-8"))
            compile(planted, str(fault.path), "exec")
            if not fault.test_files:
                problems[fault.name] = "no tests are named"
        except (OSError, SyntaxError, ValueError) as error:
            problems[fault.name] = str(error)
    assert not problems


def test_a_text_is_found_whatever_its_layout():
    code = 'value = call(\n    first,\n    "x",  # why\n)\nother = call(first)\n'
    (span,) = occurrences(code, "call(first, 'x')")
    assert code[span.start : span.end].startswith("call(\n")
    assert len(occurrences(code, "call(first")) == 2
    assert not occurrences(code, "call(second")


def test_a_statement_that_goes_away_leaves_a_body():
    code = "def f():\n    g()\n"
    (span,) = occurrences(code, "g()")
    assert replaced(code, span, "") == "def f():\n    pass\n"
