"""Make the virtual environment of a peer, apart from MedSSL's own.

    python Testing/bench/peers/environment.py nnunet [--folder DIR] [--pip="--extra-index-url ..."]

PyTorch comes first and by the version of constraints.txt, and is named again beside the peer, so
that no dependency replaces it by another build of several GB. The interpreter is printed at the
end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PEERS = {"nnunet": "nnunetv2==2.8.1", "slicer": "slicer-core==5.12.4.0"}
NEEDS_TORCH = ("nnunet",)


def interpreter(peer: str, folder: Path | None = None) -> Path:
    """The Python of a peer's environment."""
    return (folder or ROOT / ".peers" / peer) / "bin" / "python"


def pinned_torch() -> str:
    """``torch==VERSION`` of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def commands(peer: str, python: Path, pip: list[str]) -> list[list[str]]:
    """What pip is told, in order."""
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip]
    if peer not in NEEDS_TORCH:
        return [[*install, PEERS[peer]]]
    return [[*install, pinned_torch()], [*install, pinned_torch(), PEERS[peer]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=tuple(PEERS))
    parser.add_argument("--folder", type=Path, help="default: .peers/PEER in the repository")
    parser.add_argument("--pip", default="", help="further arguments of pip")
    args = parser.parse_args()
    python = interpreter(args.peer, args.folder)
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
    for command in commands(args.peer, python, args.pip.split()):
        subprocess.run(command, check=True)
    print(python)


if __name__ == "__main__":
    sys.exit(main())
