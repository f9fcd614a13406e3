"""What this computer offers, what is missing, and the command that fixes it.

Works on a bare Python: only the standard library is needed. Packages are tried in a separate
process, since one that is half installed may look installed, or crash, when it is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from MedSSLLib import __version__
from MedSSLLib.core.packages import OPTIONAL, REQUIRED, install_command

NEEDED_DISK_GIB, NEEDED_MEMORY_GIB = 5.0, 4.0
_MODULES = {"lightning-fabric": "lightning_fabric"}
_PROBE = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        found[name] = ""
    except BaseException as error:
        found[name] = f"{type(error).__name__}: {error}"
devices = {}
if found.get("torch") == "":
    import torch
    devices = {
        "threads": torch.get_num_threads(), "cuda_build": torch.version.cuda or "",
        "cuda": [
            {"name": card.name, "memory_gib": round(card.total_memory / 2**30, 1)}
            for card in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ],
        "mps": torch.backends.mps.is_available(),
        "bfloat16": any(
getattr(torch.cpu, "get_capabilities", dict)().get(f)
for f in ("amx_bf16", "avx512_bf16")),
    }
print("\\n" + json.dumps([found, devices]))
"""


def examine(folder: Path | None = None) -> dict[str, Any]:
    """All findings as one JSON-ready dictionary.

    Args:
        folder: where projects will live, for the free disk space; the current folder by default.

    Returns:
        ``{"ok", "medssl", "python", "system", "packages": {name: {"version", "wanted", "needed",
        "problem"}}, "devices", "memory_gib", "free_memory_gib", "disk_gib", "threads",
        "problems": [{"what", "fix", "fatal"}]}``; ``ok`` is False when a problem is fatal.
    """
    broken, devices = _import_all([*REQUIRED, *OPTIONAL])
    facts: dict[str, Any] = {
        "medssl": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": _packages(broken),
        "devices": devices,
        "threads": _threads(devices),
        "disk_gib": _gib(shutil.disk_usage(folder or Path.cwd()).free),
        **_memory(),
    }
    facts["problems"] = [*_package_problems(facts["packages"]), *_machine_problems(facts)]
    facts["ok"] = not any(problem["fatal"] for problem in facts["problems"])
    return facts


READY = "All is ready.\nNext: medssl demo, or medssl init heart --images scans/"


def as_text(facts: dict[str, Any]) -> str:
    """The findings for people."""
    devices = _device_names(facts["devices"])
    memory = "unknown" if facts["memory_gib"] is None else f"{facts['memory_gib']} GiB"
    if facts["free_memory_gib"] is not None:
        memory += f", {facts['free_memory_gib']} GiB free"
    rows = [
        ("MedSSL", facts["medssl"]),
        ("Python", f"{facts['python']}  ({facts['executable']})"),
        ("System", facts["system"]),
        ("Devices", "; ".join(devices)),
        ("Memory", memory),
        ("Disk", f"{facts['disk_gib']} GiB free here"),
        (
            "Threads",
            ", ".join(f"{name} {count}" for name, count in facts["threads"].items() if count),
        ),
    ]
    rows += [(name, _package_line(entry)) for name, entry in facts["packages"].items()]
    lines = [f"{name:<18}{text}" for name, text in rows]
    for problem in facts["problems"]:
        kind = "Problem" if problem["fatal"] else "Advice"
        lines += ["", f"{kind}: {problem['what']}", f"    {problem['fix']}"]
    return "\n".join([*lines, "", READY if facts["ok"] else "Training cannot work yet."])


def _import_all(names: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Import each package in a separate process.

    What went wrong per package, and the devices that torch sees.
    """
    modules = [_MODULES.get(name, name) for name in names]
    found, devices = _probe(modules)
    if found is None:  # one of them took the process down: find out which
        found, devices = {}, {}
        for module in modules:
            single, seen = _probe([module])
            found |= single or {module: "importing it crashes Python"}
            devices = seen or devices
    return {name: found[module] for name, module in zip(names, modules, strict=True)}, devices


def _probe(modules: list[str]) -> tuple[dict[str, str] | None, dict[str, Any]]:
    command = [sys.executable or "python3", "-P", "-c", _PROBE, *modules]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
        )
        found, devices = json.loads(done.stdout.splitlines()[-1])
        return found, devices
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None, {}


def _packages(broken: dict[str, str]) -> dict[str, dict[str, Any]]:
    wanted = REQUIRED | {name: version for name, (version, _) in OPTIONAL.items()}
    return {name: _package(name, least, broken.get(name, "")) for name, least in wanted.items()}


def _package(name: str, least: str, error: str) -> dict[str, Any]:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = ""
    problem = error
    if not version and error:
        problem = "not installed"
    elif version and _numbers(version) < _numbers(least):
        problem = f"version {version} is older than {least}"
    return {
        "version": version,
        "wanted": f">={least}",
        "needed": name in REQUIRED,
        "problem": problem,
    }


def _package_line(entry: dict[str, Any]) -> str:
    if not entry["problem"]:
        return entry["version"] or "present"
    return f"{entry['problem']}{'' if entry['needed'] else ' (optional)'}"


def _package_problems(packages: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    faulty = {name: entry for name, entry in packages.items() if entry["problem"]}
    needed = [name for name, entry in faulty.items() if entry["needed"]]
    found = []
    if needed:
        what = "; ".join(f"{name}: {faulty[name]['problem']}" for name in needed)
        again = ["--force-reinstall"] if any(faulty[name]["version"] for name in needed) else []
        command = install_command(*(f"{name}>={REQUIRED[name]}" for name in needed))
        found.append(_problem(what, " ".join([command, *again]), fatal=True))
    for name, (least, purpose) in OPTIONAL.items():
        if name in faulty:
            what = f"{name}: {faulty[name]['problem']} (needed for {purpose} only)"
            found.append(_problem(what, install_command(f"{name}>={least}")))
    return found


def _machine_problems(facts: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    if _numbers(facts["python"]) < (3, 11):
        found.append(
            _problem(
                f"Python {facts['python']} is too old", "Install Python 3.11 or newer", fatal=True
            )
        )
    if facts["disk_gib"] < NEEDED_DISK_GIB:
        what = f"only {facts['disk_gib']} GiB of disk are free here"
        found.append(_problem(what, "Free some space, or put the project on another disk"))
    if facts["memory_gib"] is not None and facts["memory_gib"] < NEEDED_MEMORY_GIB:
        what = f"only {facts['memory_gib']} GiB of memory"
        found.append(_problem(what, "Use --preset quick and a small --batch"))
    if shutil.which("nvidia-smi") and facts["devices"] and not facts["devices"]["cuda"]:
        built = facts["devices"]["cuda_build"]
        why = "torch cannot use it (driver?)" if built else "torch was installed without CUDA"
        fix = (
            "Update the NVIDIA driver" if built else install_command("torch") + " --force-reinstall"
        )
        found.append(_problem(f"an NVIDIA driver is installed, yet {why}", fix))
    return found


def _problem(what: str, fix: str, *, fatal: bool = False) -> dict[str, Any]:
    return {"what": what, "fix": fix, "fatal": fatal}


def _device_names(devices: dict[str, Any]) -> list[str]:
    cards = enumerate(devices.get("cuda", []))
    names = [f"cuda:{i} {card['name']} ({card['memory_gib']} GiB)" for i, card in cards]
    if devices.get("mps"):
        names.append("mps (Apple GPU; training uses the CPU)")
    names.append("cpu (in bfloat16 when it trains)" if devices.get("bfloat16") else "cpu")
    return names if devices else ["unknown, torch is missing"]


def _threads(devices: dict[str, Any]) -> dict[str, int | None]:
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return {
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "torch": devices.get("threads"),
        "OMP_NUM_THREADS": int(limit) if limit.isdigit() else None,
    }


def _memory() -> dict[str, float | None]:
    """Total and free memory in GiB; None where nothing tells."""
    with contextlib.suppress(ImportError):
        import psutil

        memory = psutil.virtual_memory()
        return {"memory_gib": _gib(memory.total), "free_memory_gib": _gib(memory.available)}
    with contextlib.suppress(AttributeError, ValueError, OSError):
        page = os.sysconf("SC_PAGE_SIZE")
        free = _gib(os.sysconf("SC_AVPHYS_PAGES") * page)
        return {"memory_gib": _gib(os.sysconf("SC_PHYS_PAGES") * page), "free_memory_gib": free}
    return {"memory_gib": None, "free_memory_gib": None}


def _gib(size: int) -> float:
    return round(size / 2**30, 1)


def _numbers(version: str) -> tuple[int, ...]:
    """``"2.13.0+cpu"`` -> (2, 13, 0); stops at the first part that is no number."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
