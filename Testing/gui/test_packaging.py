"""The extension as its package: a mock of Slicer's CMake files configures and installs it, and we look at the result."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = "lib/Slicer/qt-scripted-modules"

_CONFIG = f"""
set(Slicer_FOUND TRUE)
set(Slicer_USE_FILE ${{CMAKE_CURRENT_LIST_DIR}}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${{CMAKE_CURRENT_LIST_DIR}}/Nothing.cmake)
set(Slicer_EXTENSION_CPACK ${{CMAKE_CURRENT_LIST_DIR}}/Nothing.cmake)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR {MODULES})
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR {MODULES})
"""

# What Slicer's macro does with a list: a file that is listed and missing stops the configuration; files go below the
# modules' folder with their relative paths, and WITH_SUBDIR puts the source folder's name before them.
_MACROS = """
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "unknown arguments ${MY_UNPARSED_ARGUMENTS}")
  endif()
  set(_sub "")
  if(MY_WITH_SUBDIR)
    get_filename_component(_sub ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  endif()
  foreach(_file ${MY_SCRIPTS} ${MY_RESOURCES})
    if(IS_ABSOLUTE ${_file} OR _file MATCHES "\\\\.\\\\./")
      message(FATAL_ERROR "${_file} lies outside the folder")
    endif()
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${_file})
      message(FATAL_ERROR "${_file} is listed and does not exist")
    endif()
    get_filename_component(_path ${_file} PATH)
    install(FILES ${_file} DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}/${_sub}/${_path})
  endforeach()
endmacro()
macro(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "SCRIPT" "" ${ARGN})
  if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT})
    message(FATAL_ERROR "${MY_SCRIPT} does not exist")
  endif()
  file(APPEND ${CMAKE_BINARY_DIR}/tests.txt "${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT}\\n")
endmacro()
"""


def find_cmake():
    """The program of the `cmake` package beside the interpreter, else the one on PATH."""
    beside = shutil.which("cmake", path=os.path.dirname(sys.executable))
    return beside or shutil.which("cmake")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(installed modules folder, scripts registered as tests)."""
    cmake = find_cmake()
    if not cmake:
        pytest.skip("cmake is not installed (pip install -e '.[gui]')")
    folder = tmp_path_factory.mktemp("package")
    slicer = folder / "slicer"
    slicer.mkdir()
    (slicer / "SlicerConfig.cmake").write_text(_CONFIG)
    (slicer / "UseSlicer.cmake").write_text(_MACROS)
    (slicer / "Nothing.cmake").write_text("")
    for command in (
        [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(folder / "build"),
            f"-DSlicer_DIR={slicer}",
            "-DBUILD_TESTING=ON",
            f"-DCMAKE_INSTALL_PREFIX={folder / 'install'}",
        ],
        [cmake, "--install", str(folder / "build")],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "install" / MODULES, (folder / "build" / "tests.txt").read_text().split()


def files(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "CMakeLists.txt"
    }


def test_every_file_arrives(built):
    installed, _tests = built
    found = files(installed)
    expected = files(ROOT / "MedSSL") | {f"MedSSLLib/{name}" for name in files(ROOT / "MedSSLLib")}
    expected |= {"Resources/MedSSL/requirements.txt"}
    assert expected - found == set(), "files that are in no list"
    assert found - expected == set()


def test_nothing_generic_is_installed(built):
    installed, _tests = built
    top = {path.name for path in installed.iterdir()}
    assert top == {"MedSSL.py", "MedSSLGui", "MedSSLLib", "Resources", "Scripts"}
    assert not (installed / "Scripts" / "__init__.py").exists()


def test_the_installed_library_imports_in_a_clean_interpreter(built):
    installed, _tests = built
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]; import MedSSLLib, MedSSLLib.project.manifest, MedSSLGui.jobs.processes as p; "
        "assert MedSSLLib.__file__.startswith(sys.argv[1]); assert str(p.libraryFolder()) == sys.argv[1]; "
        "assert 'torch' not in sys.modules and 'SimpleITK' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(installed)],
        cwd=installed.parent,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr


def test_the_installed_command_line_answers(built):
    installed, _tests = built
    done = subprocess.run(
        [sys.executable, "-m", "MedSSLLib", "--help"],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert done.returncode == 0 and "finetune" in done.stdout


def test_registered_tests_are_unittest_classes(built):
    _installed, tests = built
    assert len(tests) >= 3
    for path in tests:
        text = Path(path).read_text()
        assert re.search(r"class \w+\((unittest\.TestCase|ScriptedLoadableModuleTest)\)", text), (
            path
        )
        assert re.search(r"def (test|runTest)", text), path


def metadata():
    text = (ROOT / "CMakeLists.txt").read_text()
    return dict(re.findall(r'set\((EXTENSION_\w+) "([^"$]*)"\)', text)), text


def test_metadata_is_literal_and_complete():
    found, text = metadata()
    assert set(found) == {
        "EXTENSION_HOMEPAGE",
        "EXTENSION_CONTRIBUTORS",
        "EXTENSION_DESCRIPTION",
        "EXTENSION_ICONURL",
        "EXTENSION_SCREENSHOTURLS",
        "EXTENSION_DEPENDS",
    }
    assert found["EXTENSION_DEPENDS"] == "PyTorch"
    assert re.search(r"project\(MedSSL\)", text)
    for key in ("EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"):
        path = ROOT / found[key].split("/main/", 1)[1]
        assert path.is_file() and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", (
            f"{path} is no picture"
        )


def test_the_catalog_entry_fits_the_schema():
    entry = json.loads((ROOT / "MedSSL.json").read_text())
    allowed = {
        "$schema",
        "build_dependencies",
        "build_subdirectory",
        "category",
        "scm_revision",
        "scm_url",
        "tier",
    }
    assert set(entry) == allowed
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.2.json#")
    assert entry["category"] == "Segmentation" and entry["build_dependencies"] == ["PyTorch"]
    assert entry["build_subdirectory"] == "." and entry["tier"] in (1, 3, 5)
    assert re.fullmatch(
        r"https://github\.(com|example)/[\w.-]+/[\w.-]*Slicer[\w.-]*\.git", entry["scm_url"]
    )
    assert not re.match("Slicer", "MedSSL")


def addresses(root):
    """Every address of the repository in the files that name it."""
    base = json.loads((root / "MedSSL.json").read_text())["scm_url"][: -len(".git")]
    values = dict(
        re.findall(r'set\((EXTENSION_\w+) "([^"$]*)"\)', (root / "CMakeLists.txt").read_text())
    )
    of_extension = [
        values[key]
        for key in ("EXTENSION_HOMEPAGE", "EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS")
    ]
    of_package = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"].values()
    cited = re.findall(r'repository-code: "(.*)"', (root / "CITATION.cff").read_text())
    return base, [*of_extension, *of_package, *cited]


def tutorial(root):
    """The address that the module's help gives."""
    text = (root / "MedSSL" / "MedSSL.py").read_text()
    return re.search(r'"(https://[^"]+/Tutorial.md)"', text)[1]


def test_all_places_name_the_same_repository():
    base, (home, icon, picture, *others) = addresses(ROOT)
    page = tutorial(ROOT)
    assert page.startswith(base + "/blob/main/")
    assert (ROOT / page.split("/main/", 1)[1]).is_file()
    assert home == base, "run .ci/set-repository ADDRESS: it changes every place"
    assert icon.startswith(base + "/raw/main/") and picture.startswith(base + "/raw/main/")
    assert len(others) == 5 and all(address.startswith(base) for address in others)
    if not base.startswith("https://github.com/"):
        assert base.startswith("https://github.example/"), (
            "a placeholder must be below a reserved name"
        )


def test_the_repository_is_set_in_one_step(tmp_path):
    (tmp_path / ".ci").mkdir()
    (tmp_path / "MedSSL").mkdir()
    names = (
        "MedSSL.json",
        "CMakeLists.txt",
        "pyproject.toml",
        "CITATION.cff",
        "MedSSL/MedSSL.py",
    )
    for name in (".ci/set-repository", *names):
        shutil.copy(ROOT / name, tmp_path / name)
    script = [sys.executable, str(tmp_path / ".ci" / "set-repository")]
    assert (
        subprocess.run([*script, "https://github.com/lab/MedSSL"], capture_output=True).returncode
        == 2
    )
    assert subprocess.run([*script, "https://github.com/lab/SlicerMedSSL.git"]).returncode == 0
    base, others = addresses(tmp_path)
    assert tutorial(tmp_path).startswith(base)
    assert base == "https://github.com/lab/SlicerMedSSL" and all(
        other.startswith(base) for other in others
    )
    assert not [name for name in names if "github.example" in (tmp_path / name).read_text()]


def test_requirements_replace_nothing_of_slicers():
    lines = [
        line
        for line in (ROOT / "Resources" / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    names = {re.split(r"[<>=!~ ]", line)[0].lower() for line in lines}
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", line) for line in lines)
    assert not names & {"torch", "simpleitk", "numpy", "vtk"}
    sys.path.insert(0, str(ROOT))
    from MedSSLLib.core.packages import REQUIRED

    brought = {"torch", "simpleitk", "numpy", "pydicom"}  # by Slicer and its PyTorch extension
    assert names == {name.lower() for name in REQUIRED} - brought
