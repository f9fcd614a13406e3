"""Pseudo-labels of self-training: what each round learned from, and what a person decided about it."""

import json


class Decisions:
    """Which pseudo-labels of a run a person looked at, accepted or rejected; kept beside the run."""

    def __init__(self, runFolder):
        self.path = runFolder / "pseudo" / "decisions.json"
        self.seen, self.chosen = set(), {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self.seen = set(found["seen"])
            self.chosen = {str(case): str(word) for case, word in found["chosen"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # none yet

    def look(self, case):
        """The case was shown."""
        if case not in self.seen:
            self.seen.add(case)
            self._write()

    def choose(self, cases, word):
        """Decide about cases; word is "accept", "reject", or "" for undecided."""
        for case in cases:
            self.chosen[case] = word
            if not word:
                del self.chosen[case]
        self._write()

    def of(self, word):
        """Cases that were accepted or rejected."""
        return sorted(case for case, found in self.chosen.items() if found == word)

    def _write(self):
        from MedSSLLib.core.files import write_json

        write_json(self.path, {"seen": sorted(self.seen), "chosen": self.chosen})


def rounds(runFolder):
    """Folders of the rounds of a self-training, first round first."""
    found = []
    for folder in (runFolder / "pseudo").glob("round-*"):
        number = folder.name[len("round-") :]
        if number.isdigit() and (folder / "summary.json").is_file():
            found.append((int(number), folder))
    return [folder for _number, folder in sorted(found)]


def entries(roundFolder):
    """[(case, confidence, whether it was learned from)] of a round, the least confident first."""
    from MedSSLLib.core.errors import InputError
    from MedSSLLib.core.files import read_json

    try:
        summary = read_json(roundFolder / "summary.json", newest_version=1)
    except InputError:
        return []
    kept = set(summary.get("kept") or [])
    rows = []
    for case, row in (summary.get("cases") or {}).items():
        rows.append((case, float(row.get("confidence") or 0.0), case in kept))
    return sorted(rows, key=lambda row: row[1])
