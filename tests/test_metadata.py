"""What a package index shows of each distribution, from its pyproject.toml and from the wheel that it builds to."""

import re
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
from flit_core.wheel import make_wheel_in

from coldpress import __version__

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
FOLDERS = [ROOT / "core", *PLUGINS]
MINOR = ".".join(__version__.split(".")[:2])
RANGE = f">={MINOR},<{MINOR.partition('.')[0]}.{int(MINOR.partition('.')[2]) + 1}"


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


CORE = project(ROOT / "core")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dist")
    return {one.name: make_wheel_in(one / "pyproject.toml", folder).file for one in FOLDERS}


def metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_there_is_one_version():
    written = {
        found
        for one in FOLDERS
        for path in one.glob("src/*/__init__.py")
        for found in re.findall(r'^__version__ = "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    }

    assert written == {__version__}
    assert {project(one)["version"] for one in FOLDERS} == {__version__}


def test_changes_are_in_order_and_the_version_is_the_newest():
    headings = re.findall(r"^## (\S+), (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    versions = [tuple(map(int, version.split("."))) for version, _ in headings]

    assert headings[0][0] == __version__
    assert versions == sorted(set(versions), reverse=True)
    dates = [day for _, day in headings[headings[0][1] == "unreleased" :]]
    assert [day for day in dates if not re.fullmatch(r"\d{4}-\d\d-\d\d", day)] == []


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_and_its_extra_fit_each_other(folder):
    name = project(folder)["name"]
    extra = name.removeprefix("coldpress-")

    assert folder.name == extra.replace("-", "_")
    assert f"coldpress{RANGE}" in project(folder)["dependencies"]
    assert f"{name}{RANGE}" in CORE["optional-dependencies"][extra]
    assert extra in re.findall(r"[\w-]+", CORE["optional-dependencies"]["all"][0])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_wheel_says_what_it_is_and_under_which_licence(folder, wheels):
    found = metadata(wheels[folder.name])

    assert found["License-Expression"] == "Apache-2.0"
    assert found["License-File"] == "LICENSE"
    assert found["Requires-Python"] == CORE["requires-python"]
    assert found["Description-Content-Type"].startswith("text/markdown")
    assert found.get_payload().startswith(f"# {found['Name']}\n")
    assert len(found["Summary"]) > 20
    assert {"coldpress", "llm"} & set(found["Keywords"].split(","))
    assert sorted(found.get_all("Classifier")) == sorted(CORE["classifiers"])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_wheel_holds_its_package_with_types_and_licence_and_nothing_else(folder, wheels):
    package = "coldpress" if folder.name == "core" else f"coldpress_{folder.name}"
    info = f"{package}-{__version__}.dist-info"
    with ZipFile(wheels[folder.name]) as archive:
        names = set(archive.namelist())
        licence = archive.read(f"{info}/licenses/LICENSE")
        points = archive.read(f"{info}/entry_points.txt").decode() if f"{info}/entry_points.txt" in names else ""

    assert {name.partition("/")[0] for name in names} == {package, info}
    assert f"{package}/py.typed" in names
    assert {name for name in names if name.endswith(".py")} == {
        path.relative_to(folder / "src").as_posix() for path in folder.glob("src/**/*.py")
    }
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert set(re.findall(r"^\[(.+)\]$", points, re.MULTILINE)) == {
        *project(folder).get("entry-points", {}),
        *(["console_scripts"] if folder.name == "core" else []),
    }


def test_classifiers_name_the_versions_that_are_required():
    named = [one.rpartition(" ")[2] for one in CORE["classifiers"] if "Python :: 3." in one]

    assert f">={named[0]}" == CORE["requires-python"]
    assert "Typing :: Typed" in CORE["classifiers"]
