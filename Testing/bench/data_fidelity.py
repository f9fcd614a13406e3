"""A table of kinds of data x variants: what comes through, what is refused, what is silently wrong.

    python Testing/bench/data_fidelity.py [WORD ...] [--out FILE]

The variants are those of Testing/lib/fidelity, where the tests run them too; WORDs choose those
whose kind or name holds one. Ends with 1 when a verdict is not the one that is right.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from Testing.lib.fidelity.registry import all_variants, judge  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="only variants whose kind or name holds one")
    parser.add_argument("--out", help="also write the table there (Markdown)")
    options = parser.parse_args()
    lines = ["| kind | variant | verdict | in which words |", "|---|---|---|---|"]
    counts: Counter[str] = Counter()
    wrong = 0
    for found in all_variants():
        if options.words and not any(w in f"{found.kind} {found.name}" for w in options.words):
            continue
        with tempfile.TemporaryDirectory() as folder:
            verdict = judge(found, Path(folder))
        counts[verdict.word] += 1
        as_expected = verdict.word == found.expect
        wrong += not as_expected
        note = verdict.detail if as_expected else f"EXPECTED {found.expect}: {verdict.detail}"
        note = note.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {found.kind} | {found.name} | {verdict.word} | {note} |")
        print(lines[-1], flush=True)
    total = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    lines += ["", f"{sum(counts.values())} variants: {total}. Not as expected: {wrong}."]
    print(lines[-1])
    if options.out:
        Path(options.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
