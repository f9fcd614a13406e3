"""Known vulnerabilities of the pinned versions, and a bill of materials of what is installed.

    make audit                            or: python Testing/faults/audit.py
    python Testing/faults/audit.py --seconds 15        the time that pip-audit may take

1. pip-audit asks the vulnerability service of PyPI about every version in constraints.txt. Where
   the service cannot be reached, or does not know the packages (a mirror), this says NOT AUDITED:
   that is no failure, and no all-clear.
2. Without a network too: no version in constraints.txt, and no lower bound of pyproject.toml, is
   one that advisories.json lists as vulnerable.
3. build/bom.cdx.json (CycloneDX) lists every installed distribution with version and licence.

Exit code 1 when a version is known to be vulnerable, 0 otherwise.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from email.message import Message
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS, PROJECT, BOM = (
    ROOT / name for name in ("constraints.txt", "pyproject.toml", "build/bom.cdx.json")
)
ADVISORIES = Path(__file__).with_name("advisories.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="time that pip-audit may take")
    options = parser.parse_args()
    bad = audited(options.seconds) + known_here()
    for line in bad:
        print(f"VULNERABLE {line}")
    try:
        bill_of_materials()
    except Exception as error:
        print(f"bill of materials: NOT WRITTEN ({type(error).__name__}: {error})")
    return 1 if bad else 0


def audited(seconds: float) -> list[str]:
    """What pip-audit finds, a line each; says how many versions it could judge."""
    words = [
        sys.executable,
        "-m",
        "pip_audit",
        "-r",
        str(CONSTRAINTS),
        "--no-deps",
        "--disable-pip",
        "-f",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        "10",
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"pip-audit: NOT AUDITED, no answer within {seconds:g} s")
        return []
    try:
        rows = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"pip-audit: NOT AUDITED ({last})")
        return []
    text, found = judged(rows)
    print(text)
    return found


def judged(rows: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """A sentence about pip-audit's answer, and a line for every vulnerability. A version it skipped
    is not judged.
    """
    answered = [row for row in rows if "skip_reason" not in row]
    found = [
        f"{row['name']} {row['version']}: {one['id']}, fixed in "
        f"{', '.join(one['fix_versions']) or 'no version'}"
        for row in answered
        for one in row.get("vulns", ())
    ]
    if not answered:
        return (
            f"pip-audit: NOT AUDITED, the service knows none of the {len(rows)} packages (a "
            "mirror?)",
            found,
        )
    note = (
        ""
        if len(answered) == len(rows)
        else f"; {len(rows) - len(answered)} are not known to the service"
    )
    return (
        f"pip-audit: {len(answered)} of {len(rows)} versions looked up, {len(found)} "
        f"vulnerabilities{note}",
        found,
    )


def known_here() -> list[str]:
    """Pinned versions and lower bounds that the committed list of advisories names."""
    rows = json.loads(ADVISORIES.read_text(encoding="utf-8"))["advisories"]
    versions = [
        *((name, version, True) for name, version in pins().items()),
        *((*bound, False) for bound in bounds()),
    ]
    bad = [
        f"{name} {version}: {row['id']}, fixed in {row['fixed']}"
        for name, version, pinned in versions
        for row in rows
        if row["package"] == name
        and release(version) < release(row["fixed"])
        and (pinned or "guard" not in row)
    ]
    print(
        f"advisories.json: {len(rows)} advisories, {len(versions)} pins and bounds compared, "
        f"{len(bad)} affected"
    )
    return bad


def pins() -> dict[str, str]:
    """The versions of constraints.txt by normal name."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return {
        normal(line.split("==")[0]): line.split("==")[1]
        for line in lines
        if "==" in line and line[0] != "#"
    }


def bounds() -> list[tuple[str, str]]:
    """Names and lower bounds that the package itself asks for at run time."""
    wanted = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [(normal(text.split(">=")[0]), text.split(">=")[1]) for text in wanted]


def normal(name: str) -> str:
    """A distribution's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> tuple[int, ...]:
    """Numbers of a release, without trailing zeros: 1.6 equals 1.6.0."""
    numbers = [int(part) for part in re.match(r"[\d.]*\d|", version)[0].split(".") if part]  # type: ignore[index]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _licence(facts: Message) -> str:
    """A distribution's licence: its expression, first line of the text, or classifiers."""
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in facts.get_all("Classifier") or ()
        if text.startswith("License ::")
    ]
    first = (facts.get("License") or "").partition("\n")[0]
    return facts.get("License-Expression") or first or " AND ".join(classifiers)


def bill_of_materials() -> None:
    """Write the CycloneDX file: every installed distribution with its version and licence."""
    # pip-audit brings both packages
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    licences = LicenseFactory()
    bom = Bom()
    for found in importlib.metadata.distributions():
        facts = found.metadata
        given = _licence(facts)
        bom.components.add(
            Component(
                name=normal(facts["Name"]),
                version=found.version,
                type=ComponentType.LIBRARY,
                licenses=[licences.make_from_string(given)] if given else [],
                purl=PackageURL("pypi", None, normal(facts["Name"]), found.version),
            )
        )
    BOM.parent.mkdir(exist_ok=True)
    JsonV1Dot6(bom).output_to_file(str(BOM), allow_overwrite=True, indent=1)
    print(f"bill of materials: {len(bom.components)} components, {BOM.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
