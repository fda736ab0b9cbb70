"""docs/cli.md has every command and option, and docs/llm-compressor.md every argument that does nothing."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer.main

from coldpress.arguments import WITHOUT_EFFECT
from coldpress.cli.app import app

DOCS = Path(__file__).parents[1] / "docs"
BENCHMARKS = DOCS.parent / "benchmarks"
PROGRAM = typer.main.get_command(app)
EVERYWHERE = {"--help", "-h", "--debug", "--version"}


def sections(page):
    """Heading to text of the second level; what stands before the first heading has the empty one."""
    parts = re.split(r"^## (.+)\n", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def options(command):
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    return {flag for flag in flags if flag.startswith("-")} - EVERYWHERE


def test_every_command_has_a_section_and_no_other():
    assert [name for name in sections("cli.md") if name] == list(PROGRAM.commands)


@pytest.mark.parametrize("name", PROGRAM.commands)
def test_every_option_is_documented_and_no_other(name):
    text = sections("cli.md")[name]
    words = re.sub(r"^```(?:text|bash)\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)

    told = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", words))

    assert told == options(PROGRAM.commands[name])


def test_what_holds_everywhere_stands_at_the_beginning():
    assert [flag for flag in EVERYWHERE if f"`{flag}`" not in sections("cli.md")[""]] == []


def test_every_argument_without_effect_has_a_line():
    text = sections("llm-compressor.md")["What is accepted and does nothing"]

    assert re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE) == sorted(WITHOUT_EFFECT)


def test_what_benchmarks_import_is_there(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    elsewhere = {"PIL", "auto_round", "llmcompressor", "matplotlib"}  # of other environments, which their pages name
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in BENCHMARKS.rglob("*.py")}
    found = {
        (path.name, node.module)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] not in elsewhere
    }

    assert [one for one in sorted(found) if find_spec(one[1].partition(".")[0]) is None] == []


def test_every_benchmark_has_its_command_in_their_list():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    programs = [path for path in BENCHMARKS.glob("*.py") if f"\n    python benchmarks/{path.name}" in path.read_text()]

    assert len(programs) > 20
    assert [path.name for path in programs if f"python benchmarks/{path.name}" not in text] == []
