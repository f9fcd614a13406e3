"""Run any MedSSL command in Slicer without its window; the arguments are those of `medssl`.

    Slicer --no-splash --no-main-window --python-script MedSSL/Scripts/medssl_batch.py finetune PROJECT --minutes 10
    Slicer --no-splash --no-main-window --python-script MedSSL/Scripts/medssl_batch.py --install

`--install [--wheels FOLDER]` installs what is missing, without asking. The exit code is the command's: 0 done,
1 failed, 2 bad input, 3 cancelled, 4 stopped by a guard. No dialog is opened. Output is plain ASCII, since Slicer's log
reads bytes as Latin-1: other characters are escaped.
"""

import os
import subprocess
import sys
import traceback
from pathlib import Path


def main(arguments):
    """Run the command in its own process; returns its exit code."""
    if not arguments:
        return usage(__doc__)
    if arguments[0] == "--install":
        return install(arguments[1:])
    return medssl(arguments)


def medssl(arguments):
    """A `medssl` command in its own process; returns its exit code."""
    processes = _processes()
    import slicer

    program = processes.pythonExecutable(slicer.app.slicerHome)
    if not program:
        say("PythonSlicer was not found beside the application.")
        return 1
    return subprocess.call([program, "-m", "MedSSLLib", *arguments], env=_environment())


def install(arguments):
    """Install what is missing and have a separate process import it; returns an exit code."""
    _processes()
    from MedSSLGui.jobs.install import Installer

    wheels = ""
    if arguments:
        if arguments[0] != "--wheels" or len(arguments) != 2:
            return usage(__doc__)
        wheels = arguments[1]
    Installer().install(wheels)
    return medssl(["doctor"])


def usage(text):
    """Say how the script is called; returns the exit code of bad usage."""
    say("Wrong arguments. Usage:\n" + text)
    return 2


def say(text):
    """Print in ASCII: what a script prints passes a log handler that reads bytes as Latin-1."""
    print(str(text).encode("ascii", "backslashreplace").decode("ascii"), flush=True)


def run(script):
    """Run `script(arguments)` and end the application with its exit code.

    An exception that left a script would keep the application running for ever.
    """
    try:
        code = script(sys.argv[1:])
    except BaseException:
        say(traceback.format_exc())
        code = 1
    sys.stdout.flush()
    try:
        import slicer

        slicer.util.exit(code)
    except Exception:
        os._exit(code)


def _environment():
    """Of a command whose output goes through Slicer's log."""
    environment = dict(entry.split("=", 1) for entry in _processes().jobEnvironment())
    environment["PYTHONIOENCODING"] = "ascii:backslashreplace"
    return environment


def _processes():
    """The module's own code, made importable."""
    folder = str(moduleFolder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from MedSSLGui.jobs import processes

    return processes


def moduleFolder():
    """The folder of MedSSL.py: above this script, or where the script was installed to."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent, here):
        if (folder / "MedSSLGui").is_dir():
            return folder
    return here.parent


if __name__ == "__main__":
    run(main)
