"""What is missing or named otherwise in other versions of Slicer, and what the application demands of a module."""

import ast
import sys
import types
from pathlib import Path

import pytest
from conftest import ROOT, wait_until

sys.path.insert(0, str(ROOT / "MedSSL"))


@pytest.fixture()
def installs(application, monkeypatch):
    """What would be installed, with PyTorch missing here."""
    import importlib.util

    import slicer

    asked = []
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else real(name)
    )
    monkeypatch.setattr(
        slicer.util,
        "pip_install",
        lambda arguments: asked.append(("pip", arguments)),
        raising=False,
    )
    torch = types.ModuleType("PyTorchUtils")
    torch.PyTorchUtilsLogic = lambda: types.SimpleNamespace(
        installTorch=lambda **options: asked.append(("torch", options)) or "torch"
    )
    monkeypatch.setitem(sys.modules, "PyTorchUtils", torch)
    return asked


def test_without_slicer_packaging_pip_is_used(installs):
    import slicer
    from MedSSLGui.jobs.install import Installer

    assert not hasattr(slicer, "packaging"), "Slicer before 5.12"
    Installer().install()
    assert installs[0] == ("torch", {"askConfirmation": False, "torchVersionRequirement": ">=2.8"})
    assert (
        installs[1][0] == "pip"
        and installs[1][1][0] == "-r"
        and installs[1][1][1].endswith("requirements.txt")
    )


def test_with_slicer_packaging_only_what_is_missing_is_asked_for(installs, monkeypatch):
    import slicer
    from MedSSLGui.jobs.install import Installer

    def ensure(
        requirements,
        constraints=None,
        skip_packages=None,
        prompt_install=True,
        prompt_restart=True,
        requester=None,
        skip_in_testing=True,
        show_progress=True,
    ):
        installs.append(("ensure", requirements, prompt_install))

    packaging = types.SimpleNamespace(pip_ensure=ensure, load_requirements=lambda path: ["listed"])
    monkeypatch.setattr(slicer, "packaging", packaging, raising=False)
    Installer().install()
    assert installs[1:] == [("ensure", ["listed"], False)], "the user was asked already"


def test_from_a_folder_of_wheels_nothing_is_downloaded(installs, tmp_path):
    from MedSSLGui.jobs.install import Installer

    Installer().install(str(tmp_path / "wheels with space"))
    for kind, arguments in installs:
        assert kind == "pip" and arguments[:3] == [
            "--no-index",
            "--find-links",
            str(tmp_path / "wheels with space"),
        ]
    assert len(installs) == 2


def test_without_the_pytorch_extension_it_says_what_to_do(installs, monkeypatch):
    from MedSSLGui.jobs.install import Installer

    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(RuntimeError, match="Extensions Manager"):
        Installer().install()
    assert not installs


def test_an_editor_with_the_older_names(application):
    """Before "source volume" the editor said "master volume"."""
    import slicer
    from MedSSLGui.scene.editor import EmbeddedEditor

    class Older:
        masterVolumeNodeSelectorVisible = segmentationNodeSelectorVisible = True
        switchToSegmentationsButtonVisible = True

        def __init__(self):
            self.calls = []

        def __getattr__(self, name):
            if not name.startswith("set"):
                raise AttributeError(name)
            if name == "setSourceVolumeNode":
                raise AttributeError(name)
            return lambda *values: self.calls.append((name, *values))

    widget = Older()
    editor = EmbeddedEditor(widget)
    editor.edit(None, None)
    assert not widget.masterVolumeNodeSelectorVisible and not hasattr(
        widget, "addRemoveSegmentButtonsVisible"
    )
    assert ("setMasterVolumeNode", None) in widget.calls
    slicer.mrmlScene.RemoveNode(editor._node())


def test_sample_data_is_registered_as_every_version_takes_it(application, monkeypatch):
    """SampleDataSource counts the entries of its lists, so None is refused."""
    from MedSSLGui.project import sampledata

    taken = []

    class Logic:
        @staticmethod
        def registerCustomSampleDataSource(
            category="Custom",
            sampleName=None,
            uris=None,
            fileNames=None,
            nodeNames=None,
            customDownloader=None,
            thumbnailFileName=None,
        ):
            assert Path(thumbnailFileName).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
            assert len(uris) == len(fileNames) == len(nodeNames)
            taken.append((category, sampleName, customDownloader))

    module = types.ModuleType("SampleData")
    module.SampleDataLogic = Logic
    monkeypatch.setitem(sys.modules, "SampleData", module)
    sampledata.register()
    assert [entry[:2] for entry in taken] == [
        ("Segmentation", "MedSSLHeart"),
        ("Segmentation", "MedSSLHippocampus"),
    ]
    kinds = []
    monkeypatch.setattr(sampledata, "loadCohort", kinds.append)
    for entry in taken:
        entry[2](object())
    assert kinds == ["heart", "hippocampus"]


def test_numbers_keep_the_range_of_their_widgets(user):
    """Slicer gives a widget the range of its parameter, and none below zero where there is none."""
    for name, low, high in (
        ("pretrainMinutesSpinBox", 0, 100000),
        ("trainMinutesSpinBox", 0, 100000),
        ("mixupSpinBox", 0, 10),
        ("roundsSpinBox", 0, 20),
        ("budgetSpinBox", 1, 1000),
    ):
        widget = user.find(name)
        assert (widget.minimum(), widget.maximum()) == (low, high), name
    assert (
        user.find("pretrainMinutesSpinBox").text() == "as the preset says"
        and user.find("mixupSpinBox").text() == "off"
    )
    for name in ("opacitySlider", "outlineSlider", "uncertaintySlider"):
        assert (user.find(name).property("minimum"), user.find(name).property("maximum")) == (
            0,
            1,
        ), name


def test_every_control_of_the_open_panel_explains_itself(user):
    from PySide6 import QtWidgets

    silent = []
    kinds = (
        QtWidgets.QAbstractButton,
        QtWidgets.QComboBox,
        QtWidgets.QAbstractSpinBox,
        QtWidgets.QLineEdit,
        QtWidgets.QAbstractItemView,
        QtWidgets.QPlainTextEdit,
        QtWidgets.QProgressBar,
    )
    for widget in user.loaded.panel.findChildren(QtWidgets.QWidget):
        if (
            not isinstance(widget, kinds)
            or not widget.objectName()
            or widget.objectName().startswith("qt_")
        ):
            continue
        parent, text = widget, ""
        while parent is not None and not text and parent is not user.loaded.panel:
            text, parent = parent.toolTip(), parent.parentWidget()
        if not text:
            silent.append(widget.objectName())
    assert silent == []


def test_the_keys_do_what_the_buttons_do(user):
    user.shell.open("annotate")
    keys = {shortcut.key().toString(): shortcut for shortcut in user.shell._shortcuts}
    assert sorted(keys) == ["Shift+A", "Shift+M", "Shift+N", "Shift+P"]
    for key, button in (
        ("Shift+A", "acceptSliceButton"),
        ("Shift+M", "markSliceButton"),
        ("Shift+N", "nextSliceButton"),
        ("Shift+P", "previousSliceButton"),
    ):
        assert key in user.find(button).toolTip()
    keys["Shift+M"].activated.emit()
    wait_until(lambda: False, 0.05)
    assert "Show a case first" in user.status()


def texts_shown(tree):
    """String constants that are handed to something that shows them, without `_()`."""
    shown = {
        "say",
        "setText",
        "setToolTip",
        "setTitle",
        "appendPlainText",
        "drawText",
        "setFormat",
        "setXAxisTitle",
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in shown
        ):
            for argument in node.args:
                texts = (
                    [argument]
                    if isinstance(argument, ast.Constant)
                    else (argument.values if isinstance(argument, ast.JoinedStr) else [])
                )
                for text in texts:
                    if (
                        isinstance(text, ast.Constant)
                        and isinstance(text.value, str)
                        and sum(map(str.isalpha, text.value)) > 1
                    ):
                        if text.value not in ("info", "busy", "done", "warning", "error"):
                            yield node.lineno, text.value


@pytest.mark.parametrize(
    "path", sorted((ROOT / "MedSSL").rglob("*.py")), ids=lambda path: path.name
)
def test_what_people_read_can_be_translated(path):
    assert list(texts_shown(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_the_check_for_translation_notices():
    assert list(texts_shown(ast.parse("self.say('Hello')\nlabel.setText(f'{n} done')")))


def test_the_module_describes_itself(application):
    import slicer_bench

    description = slicer_bench.load_module(ROOT / "MedSSL" / "MedSSL.py").description
    assert description.title == "MedSSL" and description.categories == ["Segmentation"]
    for word in ("Data", "Pre-train", "Annotate", "Train", "Review", "computer"):
        assert word in description.helpText
    for word in ("PGL", "gradient-guided", "local contrastive"):
        assert word in description.acknowledgementText
