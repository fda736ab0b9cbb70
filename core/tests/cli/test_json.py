"""`--json`: one object a command, of a named form and version, all of whose keys are documented."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from coldpress.cli.app import app
from coldpress.cli.schema import VERSIONS, versioned
from coldpress.testing.models import tiny_llama, tiny_tokenizer

DOCS = Path(__file__).parents[3] / "docs/cli.md"
DATA = ("--num-calibration-samples", 2, "--max-seq-length", 32)
LIKE = {"convert": "compress"}  # forms that have the keys of another one


def documented() -> dict[str, set[str]]:
    """Form to its keys, as the tables of the docs have them."""
    text = DOCS.read_text(encoding="utf-8")
    found = {}
    for form, table in re.findall(r"`--json` prints `coldpress-([a-z/0-9]+)`:\n\n((?:\|.*\n)+)", text):
        found[form] = {key for row in table.splitlines()[2:] for key in re.findall(r"`([^`]+)`", row.split(" | ")[0])}
    for one, several in (("recipe/1", "recipes"), ("scheme/1", "schemes")):
        found[one] = {key.partition("[].")[2] for key in found[f"{several}/1"]}
    found["scheme/1"] |= set(re.findall(r"`((?:weights|input_activations)\.\*)`", text))
    for form, other in LIKE.items():
        assert f"`coldpress-{form}/1`, with the keys of [{other}]" in text
        found[f"{form}/1"] = found[f"{other}/1"]
    return found


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Paths of everything in a value that holds nothing itself: `layers[].name`."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from keys(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from keys(item, f"{path}[]")
    else:
        yield path


def is_documented(key: str, known: set[str]) -> bool:
    """Whether a key, one of the names that `*` stands for, or what is empty of what has keys, is in the docs."""
    if key in known or any(re.match(rf"{re.escape(key)}(\.|\[\])", one) for one in known):
        return True
    return any(one.endswith("*") and key.startswith(one[:-1]) for one in known)


@pytest.fixture(scope="module")
def answers(model, compressed, text, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What each form looks like, from the commands on a tiny model."""
    place = tmp_path_factory.mktemp("json")
    (place / "recipe.yaml").write_text("modifiers: [ConstantPruningModifier: {targets: ['re:.*up_proj']}]\n")
    untied = place / "model"
    pruned = tiny_llama()
    for layer in pruned.model.layers:
        layer.mlp.up_proj.weight.data[:, ::2] = 0
    pruned.save_pretrained(untied)
    tiny_tokenizer().save_pretrained(untied)
    small = ("--device", "cpu", "--text", text, "--window", 64)
    recipe = ("-r", place / "recipe.yaml", "--dataset", text, "--max-seq-length", 32)
    lines = {
        "compress": ("compress", model, "-s", "W4A16", "-a", "gptq", "--group-size", 32, *DATA, "-o", place / "c"),
        "convert": ("convert", compressed, place / "dense", "--to", "dense"),
        "plan": ("plan", model, "-s", "W4A16", "-a", "gptq", "--group-size", 32, *DATA),
        "train": ("train", untied, *recipe, "--max-steps", 1, "--batch-size", 1, "-o", place / "trained"),
        "evaluate": ("evaluate", compressed, "--against", model, *small),
        "inspect": ("inspect", compressed),
        "diff": ("diff", model, compressed),
        "trace": ("trace", model, "--device", "cpu"),
        "recipes": ("recipes",),
        "recipe": ("recipes", "gptq-w4a16"),
        "schemes": ("schemes",),
        "scheme": ("schemes", "W8A8"),
        "datasets": ("datasets",),
        "plugins": ("plugins",),
        "plugin": ("plugins", "QuantizationModifier"),
        "defaults": ("defaults",),
    }
    found = {}
    for form, words in lines.items():
        answer = CliRunner().invoke(app, [*map(str, words), "--json"])
        assert answer.exit_code == 0, (form, answer.stderr)
        found[form] = json.loads(answer.stdout)  # one object, and nothing else
    return found


@pytest.mark.parametrize("form", [form for form in VERSIONS if form != "demo"])
def test_every_key_is_documented_under_the_form_and_its_version(answers, form):
    found = answers[form]

    name, known = next(iter(found)), documented()[f"{form}/{VERSIONS[form]}"]
    assert (name, found.pop("schema")) == ("schema", f"coldpress-{form}/{VERSIONS[form]}")
    assert [key for key in sorted(set(keys(found))) if not is_documented(key, known)] == []


def test_several_formats_have_a_size_each(coldpress, model, tmp_path):
    formats = ("--format", "compressed-tensors", "--format", "dense")

    answer = coldpress("compress", model, "-s", "W8A8", *formats, "--json", "-o", tmp_path / "out")

    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["formats"]["compressed-tensors"]["bytes_after"] < found["formats"]["dense"]["bytes_after"]
    assert [key for key in keys(found) if not is_documented(key, {"schema", *documented()["compress/1"]})] == []


def test_every_form_is_documented_and_no_other():
    assert set(documented()) == {f"{form}/{version}" for form, version in VERSIONS.items()}


def test_every_command_that_reports_has_the_option():
    commands = typer.main.get_command(app).commands
    without = {name for name, one in commands.items() if "--json" not in {o for p in one.params for o in p.opts}}

    assert without == {"new", "port", "report"}  # which write files, and name them


def test_the_keys_of_the_demo_are_documented(coldpress, model, monkeypatch):
    monkeypatch.setattr("coldpress.cli.demo._MODEL", str(model))
    monkeypatch.setattr("coldpress.cli.demo._QUICK", {"max_tokens": 128, "window": 64})

    answer = coldpress("demo", "--quick", "--schemes", "W8A8", "--json")

    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found.pop("schema") == "coldpress-demo/1"
    assert [key for key in keys(found) if not is_documented(key, documented()["demo/1"])] == []


def test_a_key_that_is_not_documented_is_found():
    known = {"layers[].name", "parts.*", "bytes"}

    assert is_documented("layers", known)
    assert is_documented("parts.a.b", known)
    assert not any(is_documented(key, known) for key in ("layer", "layers[].kind", "byte", "part.a"))


def test_the_name_of_the_form_comes_first():
    assert list(versioned("plan", {"size": 1})) == ["schema", "size"]
