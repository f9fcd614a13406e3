"""Python packages: what seems missing, what a separate process can really import, and installing on request.

Nothing is installed unless the user presses Install and agrees, or the batch script gets `--install`. PyTorch comes
through the PyTorch extension, the rest from Resources/requirements.txt, which never replaces Slicer's own NumPy,
SimpleITK or an installed PyTorch.
"""

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from ..signals import Signal
from .ready import sharedReady
from .runner import Job, Runner

_LIGHT_CHECK = ("torch", "monai", "pydantic", "safetensors", "blosc2", "lightning_fabric")
TORCH_MINIMUM = ">=2.8"
TORCH_GIB, OTHER_GIB = 2.5, 0.6


def seemsMissing():
    """Packages that this interpreter cannot find. Quick: nothing is imported."""
    return [name for name in _LIGHT_CHECK if importlib.util.find_spec(name) is None]


def requirementsFile():
    """Resources/requirements.txt of the installed module, or of the source tree."""
    here = Path(__file__).resolve().parents[2]
    for folder in (here / "Resources" / "MedSSL", here.parent / "Resources"):
        if (folder / "requirements.txt").is_file():
            return folder / "requirements.txt"
    raise FileNotFoundError("requirements.txt")


def question(folder, wheels=""):
    """The text that asks for consent: what, how large, where, and the space there."""
    free = shutil.disk_usage(folder).free / 2**30
    source = (
        _("the folder {folder}").format(folder=wheels) if wheels else _("the Python package index")
    )
    return _(
        "MedSSL needs PyTorch (about {torch:.1f} GiB, more with CUDA) and some Python packages (about {other:.1f} "
        "GiB).\n\nThey are taken from {source} and installed into this Slicer's own Python. {free:.1f} GiB are free "
        "there.\n\nInstall now?"
    ).format(torch=TORCH_GIB, other=OTHER_GIB, source=source, free=free)


class Installer:
    """Checks and installs. `checked(problem)` gives "" when a separate process could import everything."""

    def __init__(self):
        self.checked = Signal()
        self._runner = Runner()
        self._runner.line.connect(self._lines)
        self._runner.ended.connect(self._onEnded)
        self._text = []
        self.verified = False
        self.devices = {}

    def isChecking(self):
        return self._runner.isRunning()

    def drop(self):
        """Nobody waits for the check any more."""
        self._runner.drop()

    def verify(self):
        """Import everything in a separate process; `checked` tells the outcome. Does not block."""
        if not self._runner.isRunning():
            self._text = []
            self._runner.start(
                Job(_("Checking the installation"), ["-m", "MedSSLLib", "doctor", "--json"])
            )

    def install(self, wheels=""):
        """Install PyTorch and the requirements, from `wheels` if given. Blocks; call from the main thread only.

        Raises RuntimeError with what failed. Afterwards call `verify`: only that decides.
        """
        self.verified = False
        with sharedReady().away():  # it holds files of the packages open
            self._install(wheels)
        importlib.invalidate_caches()

    def _install(self, wheels):
        extra = ["--no-index", "--find-links", wheels] if wheels else []
        if importlib.util.find_spec("torch") is None:
            self._installTorch(extra)
        else:
            self._checkTorch()
        requirements = requirementsFile()
        ensure = getattr(getattr(slicer, "packaging", None), "pip_ensure", None)
        if ensure and not wheels:
            ensure(
                slicer.packaging.load_requirements(requirements),
                requester="MedSSL",
                prompt_install=False,
            )
        else:
            slicer.util.pip_install([*extra, "-r", str(requirements)])

    @staticmethod
    def _checkTorch():
        """pip would replace an older PyTorch by one from the package index, which may be without CUDA."""
        from packaging.specifiers import SpecifierSet

        found = importlib.metadata.version("torch")
        if not SpecifierSet(TORCH_MINIMUM).contains(found.split("+")[0], prereleases=True):
            raise RuntimeError(
                _(
                    "PyTorch {found} is installed, and MedSSL needs {wanted}. Uninstall it in the module "
                    "PyTorch Utils, restart Slicer, then press Install again. Other extensions may need "
                    "the old version."
                ).format(found=found, wanted=TORCH_MINIMUM)
            )

    @staticmethod
    def _installTorch(extra):
        if extra:
            slicer.util.pip_install([*extra, f"torch{TORCH_MINIMUM}"])
            return
        try:
            import PyTorchUtils
        except ImportError:
            raise RuntimeError(
                _(
                    "The PyTorch extension is missing. Install it in the Extensions Manager, restart "
                    "Slicer and try again."
                )
            ) from None
        logic = PyTorchUtils.PyTorchUtilsLogic()
        installed = logic.installTorch(askConfirmation=False, torchVersionRequirement=TORCH_MINIMUM)
        if installed is None:
            raise RuntimeError(_("The PyTorch extension could not install PyTorch."))

    def _lines(self, text):
        self._text.append(text)

    def _onEnded(self, outcome):
        report = self._report()
        self.devices = report.get("devices", {})
        if outcome.state == "done":
            problem = ""
        else:
            problem = (
                "; ".join(_problems(report)) or outcome.message or _("the check did not finish")
            )
        self.verified = not problem
        self.checked.emit(problem)

    def _report(self):
        text = "\n".join(self._text)
        start, end = text.find("{"), text.rfind("}")
        try:
            return json.loads(text[start : end + 1])
        except ValueError:
            return {}


def _problems(report):
    """What a doctor's report calls fatal."""
    return [
        str(entry.get("what", "")) for entry in report.get("problems", []) if entry.get("fatal")
    ]


def soundsLikeMissing(text):
    """Whether a job's message says that a package is missing or broken."""
    return any(
        part in text
        for part in ("No module named", "ImportError", "DLL load failed", "cannot import name")
    )
