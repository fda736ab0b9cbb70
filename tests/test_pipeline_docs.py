"""docs/pipelines.md: its blocks run, one after the other, and its tables are complete."""

import re
import tempfile
from pathlib import Path

import pytest
from attrs import fields

from coldpress import registry
from coldpress_pipelines import Independent, LayerSequential, Sequential

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "pipelines.md").read_text(encoding="utf-8")


def rows(heading):
    """The first cells of the tables in a section."""
    section = re.split(r"^## ", PAGE, flags=re.M)[0] if heading is None else PAGE.partition(f"## {heading}\n")[2]
    return re.findall(r"^\| `(\w+)` \|", section.partition("\n## ")[0], re.M)


def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    page = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S):
        exec(compile(block, "docs/pipelines.md", "exec"), page)
        said = re.findall(r"^# (.*)", block, re.M)
        assert capsys.readouterr().out.splitlines() == said

    assert {path.name for path in tmp_path.iterdir()} == {
        "by-recipe",
        "by-argument",
        "waiting-on-cpu",
        "waiting-on-disk",
        "two-walks",
    }


def test_every_pipeline_has_a_line():
    ours = [plugin.name for plugin in registry.available("pipelines") if plugin.distribution == "coldpress-pipelines"]

    assert sorted(rows(None)) == sorted(ours)


@pytest.mark.parametrize("cls", [Sequential, LayerSequential, Independent])
def test_every_setting_has_a_line_with_its_default(cls):
    told = rows("Settings")

    assert [setting.name for setting in fields(cls) if setting.name not in told] == []
    assert f"| `offload_limit` | 2**{fields(cls).offload_limit.default.bit_length() - 1} |" in PAGE


def test_its_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)", PAGE)

    assert [target for target in targets if not (DOCS / target).exists()] == []
