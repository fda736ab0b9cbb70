"""`coldpress new`: a package of each kind that installs and passes its tests as it is, and what is refused."""

import ast
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from coldpress.cli.app import app
from coldpress.errors import ArgumentError
from coldpress.scaffold import SCAFFOLDED, new_package

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


@pytest.mark.parametrize("kind", SCAFFOLDED)
def test_every_file_is_filled_and_python_that_compiles(kind, tmp_path):
    written = new_package(kind, "top-rows", tmp_path)

    texts = {path: path.read_text() for path in written}
    assert not [path for path, text in texts.items() if "@" in text.replace("@frozen", "").replace("@hookimpl", "")]
    for path, text in texts.items():
        if path.suffix == ".py":
            assert ast.get_docstring(ast.parse(text))
    project = tomllib.loads(texts[tmp_path / "coldpress-top-rows/pyproject.toml"])["project"]
    ((entry, target),) = project["entry-points"][f"coldpress.{kind}s"].items()
    assert project["dependencies"] == ["coldpress>=0.1,<0.2"]
    assert entry in {"TopRowsModifier", "top_rows", "top-rows"}
    assert target.partition(":")[0] == "coldpress_top_rows"
    assert {"README.md", "py.typed"} <= {path.name for path in written}


def test_a_modifier_s_comments_say_which_needs_a_method_wants(tmp_path):
    written = {path.name: path.read_text() for path in new_package("modifier", "top-rows", tmp_path)}

    for words in ("original_inputs=True", "calls=True", "gradients=True", "measuring_pass=True", "whole_stage=True"):
        assert words in written["modifier.py"]


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("modifer", "top-rows", "did you mean 'modifier'"),
        ("modifier", "TopRows", "small letters and digits"),
        ("modifier", "../rows", "small letters and digits"),
        ("observer", "minmax", "offers the observer 'minmax' already"),
        ("format", "dense", "offers the format 'dense' already"),
        ("observer", "min-max", "offers the observer 'minmax' already"),
        ("modifier", "gptq", "offers the modifier 'GPTQModifier' already"),
        ("dataset", "datasets", "there is a package coldpress-datasets already"),
        ("modifier", "compressed-tensors", "there is a package coldpress-compressed-tensors already"),
        ("observer", "none", "Python has a name 'None'"),
        ("observer", "warning", "Python has a name 'Warning'"),
        ("observer", "tensor", "'Tensor' would hide another one"),
        ("pipeline", "stage", "'Stage' would hide another one"),
    ],
)
def test_what_cannot_be_a_package_is_refused(kind, name, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        new_package(kind, name, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "coldpress-top-rows").mkdir()

    answer = CliRunner().invoke(app, ["new", "modifier", "top-rows", "--folder", str(tmp_path)])

    assert answer.exit_code == 2
    assert "is there already" in answer.stderr
    assert list((tmp_path / "coldpress-top-rows").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCAFFOLDED)
def test_it_installs_and_passes_its_tests_as_it_is(kind, tmp_path):
    answer = CliRunner().invoke(app, ["new", kind, "top-rows", "--folder", str(tmp_path)])
    assert answer.exit_code == 0, answer.stderr
    package, site = tmp_path / "coldpress-top-rows", tmp_path / "site"
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), str(package)]
    subprocess.run([sys.executable, "-m", *install], check=True)

    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=package, env=surroundings, capture_output=True, text=True
    )

    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
