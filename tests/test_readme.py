"""What the README shows works as it is written: commands, scripts, the recipe, its mistake, and the table."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coldpress import read_recipe
from coldpress.calibration import short
from coldpress.cli.app import app
from coldpress.errors import RecipeError
from coldpress.registry import available
from coldpress.testing.models import tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]
SCRIPTS = [block for block in blocks("python") if "oneshot(" in block]
(RECIPE,) = blocks("yaml")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a model at path/to/model, the recipe, and a script for llm-compressor."""
    folder = tmp_path / "path/to/model"
    model = tiny_llama(layers=1)
    model.config.max_position_embeddings = 512  # `evaluate` looks at windows of so many tokens
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    few = {split: short.load(split)[:4] for split in short.SPLITS}  # enough to see that the commands run
    monkeypatch.setattr("coldpress.calibration.short.load", lambda split=None: few[split or short.SPLITS[0]])
    (tmp_path / "quantize.py").write_text("from llmcompressor import oneshot\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_the_tiny_model(text):
    """The embedded model takes minutes; it is what `make demo` runs."""
    return re.sub(r"(?<![\w-])smollm2(?!-)", "path/to/model", text)


def test_the_commands_run_one_after_the_other(here):
    words = [shlex.split(on_the_tiny_model(line), comments=True) for line in COMMANDS if line.startswith("coldpress ")]
    answers = [CliRunner().invoke(app, line[1:]) for line in words]

    assert [answer.stderr for answer in answers if answer.exit_code] == []
    assert (here / "path/to/output/model.safetensors").is_file()
    assert '"group_size": 32' in (here / "smollm2-w4a16/config.json").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=["first", "from llm-compressor"])
def test_the_scripts_run(here, script):
    exec(compile(on_the_tiny_model(script), "README.md", "exec"), {})

    assert list(here.glob("**/report.json"))


def test_the_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    named = {line.split()[1] for line in COMMANDS if line.startswith("make ")} | set(
        re.findall(r"`make ([\w-]+)`", TEXT)
    )

    assert [target for target in named if f"\n{target}:" not in makefile] == []


def test_the_mistake_is_reported_as_it_is_shown(here):
    (here / "recipe.yaml").write_text(RECIPE.replace("ignore:", "ignroe:"))

    with pytest.raises(RecipeError) as caught:
        read_recipe("recipe.yaml")

    assert f"{caught.value}\n".startswith(tuple(blocks("text")))


def test_every_file_that_is_linked_is_there():
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("Modifiers", "modifiers"),
        ("Observers", "observers"),
        ("Pipelines", "pipelines"),
        ("Statistics", "statistics"),
        ("Formats", "formats"),
    ],
)
def test_the_table_names_what_is_there_and_nothing_else(row, kind):
    (cell,) = re.findall(rf"^\| {row} \| (.*) \|$", TEXT, re.MULTILINE)

    ours = {plugin.name for plugin in available(kind) if not plugin.distribution.endswith("-example")}
    assert set(re.findall(r"`([\w-]+)`", cell)) == ours
