"""Run any MedSSL command in Slicer without its window; the arguments are those of `medssl`.

    Slicer --no-splash --no-main-window --python-script MedSSL/Scripts/medssl_batch.py finetune PROJECT --minutes 10
    Slicer --no-splash --no-main-window --python-script MedSSL/Scripts/medssl_batch.py --install

`--install [--wheels FOLDER]` installs what is missing, without asking. The exit code is the command's: 0 done,
1 failed, 2 bad input, 3 cancelled, 4 stopped by a guard. No dialog is opened.
"""

import os
import subprocess
import sys
import traceback
from pathlib import Path


def main(arguments):
    """Run the command in its own process; returns its exit code."""
    sys.path.insert(0, str(_moduleFolder()))
    import slicer
    from MedSSLGui import processes

    if arguments and arguments[0] == "--install":
        return install(arguments[1:])
    program = processes.pythonExecutable(slicer.app.slicerHome)
    if not program:
        print("PythonSlicer was not found beside the application.", file=sys.stderr)
        return 1
    environment = dict(entry.split("=", 1) for entry in processes.jobEnvironment())
    return subprocess.call([program, "-m", "MedSSLLib", *arguments], env=environment)


def install(arguments):
    """Install what is missing and have a separate process import it; returns an exit code."""
    import slicer
    from MedSSLGui import processes
    from MedSSLGui.install import Installer

    wheels = arguments[arguments.index("--wheels") + 1] if "--wheels" in arguments else ""
    Installer().install(wheels)
    environment = dict(entry.split("=", 1) for entry in processes.jobEnvironment())
    return subprocess.call(
        [processes.pythonExecutable(slicer.app.slicerHome), "-m", "MedSSLLib", "doctor"],
        env=environment,
    )


def _moduleFolder():
    """The folder of MedSSL.py: above this script, or where the script was installed to."""
    here = Path(__file__).resolve().parent
    return next(
        (folder for folder in (here.parent, here) if (folder / "MedSSLGui").is_dir()), here.parent
    )


if __name__ == "__main__":
    # an exception that leaves a script would keep the application running for ever
    try:
        code = main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    try:
        import slicer

        slicer.util.exit(code)
    except Exception:
        os._exit(code)
