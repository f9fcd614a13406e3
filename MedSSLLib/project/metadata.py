"""Tables of case metadata: a CSV file with a column `case`; every other column describes the
case.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from pathlib import Path

from MedSSLLib.core.errors import InputError


def read_metadata(path: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """Metadata by case name, empty cells left out. Commas, semicolons or tabs; UTF-8 (also with
    BOM) or Latin-1.

    Raises InputError for an unreadable table, a missing `case` column, repeated columns, a row of
    another length and a case described twice in different ways.
    """
    rows = _rows(path)
    if not rows:
        raise InputError("is empty", file=path, remedy="Give a table with the column `case`.")
    header = [cell.strip() for cell in rows[0][1]]
    lower = [cell.lower() for cell in header]
    if "case" not in lower:
        raise InputError(
            f"has no column `case`, only {', '.join(header)[:200]}",
            file=path,
            remedy="Add a column `case` with the image file names without extensions.",
        )
    repeated = sorted({cell for cell in lower if lower.count(cell) > 1})
    if repeated:
        raise InputError(
            f"has the columns {', '.join(repeated)} more than once",
            file=path,
            remedy="Rename them.",
        )
    position = lower.index("case")
    table: dict[str, dict[str, str]] = {}
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise InputError(
                f"line {line} has {len(row)} cells, expected {len(header)}",
                file=path,
                remedy="Correct the line (quote cells that hold the separator).",
            )
        case = unicodedata.normalize("NFC", row[position].strip())
        entry = {key: cell.strip() for key, cell in zip(header, row, strict=True) if cell.strip()}
        entry.pop(header[position], None)
        if not case or table.setdefault(case, entry) != entry:
            raise InputError(
                f"line {line} "
                f"{'names no case' if not case else f'describes {case} differently again'}",
                file=path,
                remedy="Give one line per case.",
            )
    return table


def _rows(path: str | os.PathLike[str]) -> list[tuple[int, list[str]]]:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", file=path, remedy="Check the path."
        ) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(
            f"is not a table ({error})", file=path, remedy="Save it as CSV, UTF-8."
        ) from error
