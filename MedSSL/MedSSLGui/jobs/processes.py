"""Finding the Python that runs jobs, and asking or ending a whole process tree. No Qt in here."""

import os
import shutil
import signal
import sys
from pathlib import Path


def libraryFolder():
    """The folder that holds the package MedSSLLib: beside the installed module, or the source tree's root."""
    here = Path(__file__).resolve().parents[2]
    for folder in (here, here.parent):
        if (folder / "MedSSLLib" / "__init__.py").is_file():
            return folder
    return here


def makeLibraryImportable():
    """Put the library's folder on sys.path once, last."""
    folder = str(libraryFolder())
    if folder not in sys.path:
        sys.path.append(folder)


def pythonExecutable(slicerHome=""):
    """PythonSlicer: on PATH inside Slicer, else in the application's bin folder; "" when there is none."""
    found = shutil.which("PythonSlicer")
    if found:
        return found
    for name in ("PythonSlicer", "PythonSlicer.exe"):
        candidate = Path(slicerHome or ".") / "bin" / name
        if candidate.is_file():
            return str(candidate)
    return ""


def jobEnvironment():
    """Environment of a job as "KEY=value" strings: the library importable, output in UTF-8 and unbuffered."""
    environment = dict(os.environ)
    parts = [str(libraryFolder()), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(part for part in parts if part)
    environment.update(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8", PYTHONUTF8="1")
    return [f"{key}={value}" for key, value in environment.items()]


def processTree(pid):
    """psutil processes of `pid` and all its descendants, children last; empty when psutil or the process is missing.

    0, which Qt gives for a process that has ended, is none: on macOS everything descends from it.
    """
    if pid <= 0:
        return []
    try:
        import psutil

        root = psutil.Process(pid)
        return [root] + root.children(recursive=True)
    except Exception:  # psutil is not installed yet, or the process has just ended
        return []


def ask(pid):
    """Ask the job to stop at a safe place (SIGTERM to the interpreter, not to its launcher).

    Returns False where the system cannot ask (Windows), so that the caller goes on to end the tree.
    """
    if os.name == "nt" or pid <= 0:
        return False
    targets = [process for process in processTree(pid) if _isPython(process)][:1]
    try:
        os.kill(targets[0].pid if targets else pid, signal.SIGTERM)
    except OSError:
        return False
    return True


def endTree(pid):
    """End the process and everything it started, at once."""
    processes = processTree(pid)
    for process in processes:
        try:
            process.kill()
        except Exception:  # it has ended meanwhile
            continue
    if not processes and pid > 0 and os.name != "nt":
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            return


def _isPython(process):
    try:
        return process.name().lower().startswith("python") and "PythonSlicer" not in process.name()
    except Exception:  # it has ended meanwhile
        return False
