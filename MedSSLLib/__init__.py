"""MedSSL: self-supervised learning for medical image segmentation, headless.

::

    import MedSSLLib as medssl

    project = medssl.Project.create("heart", "scans/", labels="masks/")
    model = medssl.finetune(project, minutes=10)
    labels, affine = model.segment("new/case42.nii.gz")

The names below are all that most programs need; they are imported when they are first used, so that
this import takes no time and needs no package of training. See :mod:`MedSSLLib.api`.
"""

TYPE_CHECKING = False  # that of typing, whose import takes longer than all this
if TYPE_CHECKING:
    from MedSSLLib.api import Run as Run
    from MedSSLLib.api import Segmentation as Segmentation
    from MedSSLLib.api import complete as complete
    from MedSSLLib.api import evaluate as evaluate
    from MedSSLLib.api import finetune as finetune
    from MedSSLLib.api import predict as predict
    from MedSSLLib.api import pretrain as pretrain
    from MedSSLLib.api import selftrain as selftrain
    from MedSSLLib.api import suggest as suggest
    from MedSSLLib.core.errors import CancelledError as CancelledError
    from MedSSLLib.core.errors import GuardError as GuardError
    from MedSSLLib.core.errors import InputError as InputError
    from MedSSLLib.core.errors import MedSSLError as MedSSLError
    from MedSSLLib.images import io as io
    from MedSSLLib.project.project import Project as Project

__version__ = "0.1.0"

__all__ = [
    "CancelledError",
    "GuardError",
    "InputError",
    "MedSSLError",
    "Project",
    "Run",
    "Segmentation",
    "__version__",
    "complete",
    "evaluate",
    "finetune",
    "io",
    "predict",
    "pretrain",
    "selftrain",
    "suggest",
]

_ERRORS = ("CancelledError", "GuardError", "InputError", "MedSSLError")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "io":  # reading and writing scans and labels
        value: object = import_module(f"{__name__}.images.io")
    else:
        module = "core.errors" if name in _ERRORS else "api"
        value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
