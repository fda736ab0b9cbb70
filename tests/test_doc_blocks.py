"""Every block of the README, the guides and the cards: commands and programs run as they are written.

    <!-- not run: why -->      above a block that is not run here
    ELSEWHERE                  blocks that another test runs, and looks at closer

Names of models mean tiny ones, `coldpress/short` is four passages, the hub is a table, and training ends after three
steps; no block is changed.
Of our programs that take minutes (`python benchmarks/...`) the arguments are parsed, of `pip install` the extras are
looked up, and of `make` the targets.
"""

import argparse
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch
from packaging.requirements import Requirement
from transformers import DefaultFlowCallback
from typer.testing import CliRunner

from coldpress import oneshot, read_recipe
from coldpress.calibration import short
from coldpress.cli.app import app
from coldpress.modifiers import ConstantPruningModifier, QuantizationModifier
from coldpress.testing.models import tiny_llama, tiny_tokenizer

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "plugins/*/README.md", "benchmarks/README.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
PARTS = tomllib.loads((ROOT / "core/pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

# Page, language -> the test that runs its blocks.
ELSEWHERE = {
    ("docs/models.md", "python"): "tests/test_families.py",
    ("docs/moe.md", "python"): "core/tests/checkpoint/test_names.py",
    ("docs/pipelines.md", "python"): "tests/test_pipeline_docs.py",
    ("docs/plugins.md", "python"): "tests/test_plugin_docs.py",
    ("docs/plugins.md", "toml"): "tests/test_plugin_docs.py",
    ("docs/plugins.md", "yaml"): "tests/test_plugin_docs.py",
    ("docs/pruning.md", "python"): "tests/test_plugin_docs.py",
    ("docs/smoothing.md", "python"): "tests/test_smoothing_docs.py",
}
SITE = r"\{[\w-]+\}"  # `settings`, `eval-rst`: directives, which `make docs` runs

MODELS = ("smollm2", "path/to/model", "MODEL", "smollm2-2of4")
TRAINING = "modifiers:\n- ConstantPruningModifier: {ignore: [lm_head]}\n- OutputDistillationModifier: {}\n"
RECIPES = {"docs/cli.md": TRAINING, "docs/training.md": TRAINING}  # recipe.yaml, where the page does not show it itself
ANY_RECIPE = "modifiers:\n- GPTQModifier: {scheme: W4A16, group_size: 64, ignore: [lm_head]}\n"
TURNS = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three."}]
HUB = {  # what `datasets.load_dataset` finds
    "HuggingFaceH4/ultrachat_200k": {"messages": TURNS},
    "mlabonne/open-perfectblend": {
        "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Three."}]
    },
    "my/texts": {"text": "It is a text."},
    "openai/gsm8k": {"question": "How many?", "answer": "Three."},
}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    reason: str  # why it is not run; empty if it is


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    fences = re.finditer(r"^(?:<!-- not run: (.+) -->\n)?```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    page = path.relative_to(ROOT).as_posix()
    return [
        Block(page, text[: found.start(3)].count("\n"), found[2].strip(), found[3], found[1] or "") for found in fences
    ]


BLOCKS = [block for path in PAGES for block in blocks_of(path) if not re.match(SITE, block.language)]
RUN = [
    block
    for block in BLOCKS
    if not block.reason and block.language != "text" and (block.page, block.language) not in ELSEWHERE
]


def test_every_block_says_what_it_is():
    kinds = {"python", "bash", "yaml", "toml", "json", "text"}

    assert [(block.page, block.line) for block in BLOCKS if block.language not in kinds] == []
    assert len(RUN) > 80


def test_a_command_stands_in_no_block_of_text():
    found = [(block.page, block.line) for block in BLOCKS if block.language == "text" and "\ncoldpress " in block.text]

    assert found == []


def test_every_reason_stands_above_a_block():
    reasons = sum(path.read_text(encoding="utf-8").count("\n<!-- not run:") for path in PAGES)

    assert sum(bool(block.reason) for block in BLOCKS) == reasons


def test_what_is_run_elsewhere_is():
    found = {(block.page, block.language) for block in BLOCKS}

    assert [key for key in ELSEWHERE if key not in found] == []
    assert [key for key, test in ELSEWHERE.items() if Path(key[0]).name not in (ROOT / test).read_text()] == []


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with a tiny model under each name that pages use."""
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        model = tiny_llama(layers=1, dtype=torch.bfloat16)
        model.config.max_position_embeddings = 512  # `evaluate` looks at windows of so many tokens
        if name.endswith("2of4"):
            for layer in model.model.layers[0].modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.data[:, ::2] = 0
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def here(models, tmp_path, monkeypatch) -> Path:
    """A working folder as the pages expect it."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "recipe.yaml").write_text(ANY_RECIPE)
    (tmp_path / "my.txt").write_text("It is a text of one line.\n" * 80)
    for name in ("my.jsonl", "texts.jsonl"):
        (tmp_path / name).write_text('{"text": "It is a text."}\n' * 8)
    (tmp_path / "quantize.py").write_text("from llmcompressor import oneshot\n")
    few = {split: short.load(split)[:4] for split in short.SPLITS}
    monkeypatch.setattr("coldpress.calibration.short.load", lambda split=None: few[split or short.SPLITS[0]])
    monkeypatch.setattr("coldpress_gguf.EmbeddedSource.find", lambda name: None)  # so that `smollm2` is the folder
    monkeypatch.setattr("coldpress_gguf.vocabulary._pre_tokenizer", lambda tokenizer: "gpt-2")  # as SmolLM2's is known
    monkeypatch.setattr("datasets.load_dataset", _from_the_hub)
    monkeypatch.setattr(DefaultFlowCallback, "on_step_end", _few_steps)
    monkeypatch.chdir(tmp_path)
    return tmp_path


_LOAD = datasets.load_dataset


def _from_the_hub(name: str, config: str | None = None, *, streaming: bool = False, **how: Any) -> Any:
    if name not in HUB:
        return _LOAD(name, config, streaming=streaming, **how)
    rows = datasets.Dataset.from_list([HUB[name]] * 16)
    return rows.to_iterable_dataset() if streaming else rows


_STEP_END = DefaultFlowCallback.on_step_end


def _few_steps(self: DefaultFlowCallback, arguments: Any, state: Any, control: Any, **more: Any) -> Any:
    control = _STEP_END(self, arguments, state, control, **more)
    control.should_training_stop |= state.global_step >= 3
    return control


@pytest.mark.parametrize("page", sorted({block.page for block in RUN}))
def test_the_blocks_of_a_page_run_one_after_the_other(page, here, monkeypatch):
    own = [block for block in RUN if block.page == page]
    recipes = [block.text for block in own if block.language == "yaml" and "modifiers:" in block.text]
    (here / "recipe.yaml").write_text(RECIPES.get(page) or next(iter(recipes), ANY_RECIPE))
    names = NAMES.get(page, dict)()
    for block in own:
        run = {"python": _python, "bash": _bash, "yaml": _yaml, "toml": _toml, "json": _json}[block.language]
        run(block, names, monkeypatch)


def _python(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    exec(compile("\n" * block.line + block.text, block.page, "exec"), names)


def _yaml(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe, a line of one, or the file of defaults."""
    if block.page == "docs/cli.md":
        Path("defaults.yaml").write_text(block.text)
        monkeypatch.setenv("COLDPRESS_DEFAULTS", "defaults.yaml")
        return
    whole = "modifiers" in block.text
    assert read_recipe(block.text if whole else f"{block.text}\nmodifiers: [QuantizationModifier: {{scheme: W8A8}}]")


def _toml(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert tomllib.loads(block.text)


def _json(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(block.text)


def _bash(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            where = f"{block.page}:{block.line}: {line}"
            assert words[0] in PROGRAMS, where
            PROGRAMS[words[0]](words[1:], where, monkeypatch)


def _coldpress(words: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = CliRunner().invoke(app, words)

    assert answer.exit_code == 0, f"{where}\n{answer.stderr}"


def _make(words: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert [word for word in words if "=" not in word and f"\n{word}:" not in makefile] == [], where


def _pip(words: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extras of ours are there, folders too."""
    for word in words[1:]:
        if word.startswith("./"):
            assert list(ROOT.glob(word)), where
        elif word.startswith("coldpress"):
            assert Requirement(word).extras <= set(PARTS), where


def _benchmark(words: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program takes these arguments; what comes after they are parsed is not run."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, *arguments: Any) -> None:
        parse(self, *arguments)
        raise _ParsedError

    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        patch.setattr(sys, "argv", words)
        with pytest.raises(_ParsedError):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")


class _ParsedError(Exception):
    pass


def _export(words: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*words[0].split("=", 1))


PROGRAMS: dict[str, Callable[[list[str], str, pytest.MonkeyPatch], None]] = {
    "coldpress": _coldpress,
    "export": _export,
    "make": _make,
    "pip": _pip,
    "python": _benchmark,
}


def _in_a_loop() -> dict[str, Any]:
    """What a script that trains has before it calls coldpress."""
    from torch.optim import AdamW
    from transformers import Trainer, TrainingArguments

    model, ids = tiny_llama(layers=1), torch.arange(8) + 5
    rows = [{"input_ids": ids, "labels": ids}] * 2
    settings = TrainingArguments(output_dir="trainer", max_steps=1, report_to=[], save_strategy="no", use_cpu=True)
    found = {
        "AdamW": AdamW,
        "Trainer": Trainer,
        "model": model,
        "arguments": settings,
        "rows": rows,
        "recipe": ConstantPruningModifier(ignore=["lm_head"]),
        "batches": [{"input_ids": ids[None], "labels": ids[None]}],
    }
    return found


def _with_data_sets() -> dict[str, Any]:
    copy = Path("copies/gsm8k/main/train-00000-of-00001.parquet")
    copy.parent.mkdir(parents=True)
    datasets.Dataset.from_list([{"question": "1 + 2?", "answer": "3"}]).to_parquet(str(copy))
    return {"oneshot": oneshot, "model": "path/to/model", "recipe": "recipe.yaml"}


def _compressed() -> dict[str, Any]:
    recipe = QuantizationModifier(scheme="W4A16", group_size=64, ignore=["lm_head"])
    oneshot("path/to/model", recipe, output_dir="path/to/output", precision="float16", quiet=True, return_model=False)
    return {}


# Page -> what stands before its blocks in a reader's script.
NAMES: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/serving.md": _compressed,
    "docs/training.md": _in_a_loop,
    "plugins/datasets/README.md": _with_data_sets,
}
