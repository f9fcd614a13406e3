"""The planted faults still fit the code, and their table is the one that the results give."""

import json

import pytest

from Testing.faults import counts
from Testing.faults.faults import ROOT, faults
from Testing.faults.mutation import RESULT, TABLE, table


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.name)
def test_every_fault_still_applies(fault):
    planted = fault.planted((ROOT / fault.path).read_text(encoding="utf-8"))
    compile(planted, str(fault.path), "exec")
    assert all((ROOT / test).is_file() for test in fault.tests)


def test_no_fault_survived_and_the_table_is_that_of_the_results():
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in result["faults"]}
    names = [fault.name for fault in faults()]
    assert list(rows) == [name for name in names if name in rows], "run Testing/faults/mutation.py --new"
    assert all(row["caught"] and row["by"] for row in rows.values())
    assert all((ROOT / name.split("::")[0]).is_file() for row in rows.values() for name in row["by"] if "::" in name)
    assert TABLE.read_text(encoding="utf-8") == table(result)


def test_the_page_of_counts_is_that_of_the_results():
    assert counts.PAGE.read_text(encoding="utf-8") == counts.page()
    assert all((ROOT / name).is_file() for name in counts.quick_files())
