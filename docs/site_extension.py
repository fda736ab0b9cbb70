"""What the site needs beside Sphinx and MyST: its navigation, house docstrings, and the settings of plugins."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from coldpress.recipe.settings import settings_of, summary
from coldpress.registry import Plugin, available

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
NAVIGATION = Path(__file__).with_name("navigation.toml")

FIELDS = {"Args": "param", "Attributes": "ivar", "Raises": "raises", "Returns": "returns", "Yields": "yields"}
"""Section of a docstring -> field of reStructuredText."""


class Settings(SphinxDirective):
    """`settings KIND`: a section for each plugin of ours of a kind, from its class: summary, settings, method card."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The sections, in the order of names."""
        return [self._section(plugin) for plugin in available(self.arguments[0]) if _card(plugin).is_file()]

    def _section(self, plugin: Plugin) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(plugin.name)], names=[plugin.name.lower()])
        section += nodes.title("", "", nodes.literal("", plugin.name))
        self.state.document.note_implicit_target(section, section)
        self.state.nested_parse(StringList(_page(plugin).splitlines()), self.content_offset, section)
        return section


def _page(plugin: Plugin) -> str:
    """What a section says, as Markdown."""
    cls = plugin.load()
    link = f"[Method card](/{_card(plugin).relative_to(ROOT).as_posix()})."
    if not isinstance(cls, type):
        return f"`{cls!r}`\n\n{link}"
    rows = [
        f"| `{one.name}` | `{_cell(one.type)}` | {_default(one.default)} | {_cell(one.meaning)} |"
        for one in settings_of(cls)
    ]
    table = ["| setting | type | default | meaning |", "|---|---|---|---|", *rows] if rows else ["No settings."]
    return "\n".join([summary(cls), "", link, "", *table])


def _card(plugin: Plugin) -> Path:
    folder = plugin.distribution.removeprefix("coldpress-").replace("-", "_")
    return ROOT / "plugins" / folder / "README.md"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _default(value: str | None) -> str:
    return "required" if value is None else f"`{_cell(value)}`"


def fields(app: Sphinx, what: str, name: str, value: object, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place: Google's sections become fields, indented drawings literal blocks."""
    lines[:] = rewritten(lines)


def rewritten(lines: list[str]) -> list[str]:
    """A docstring of the house as reStructuredText."""
    found: list[str] = []
    role, before = "", ""  # the section that a line is in, and the last line that is not blank
    for line in lines:
        heading = re.fullmatch(rf"({'|'.join(FIELDS)}):", line)
        if heading:
            role = FIELDS[heading[1]]
            found.append("")
        elif role and (not line or line.startswith(" ")):
            found.append(_field(role, _escaped(line), first=before.endswith(":") and not before.startswith(" ")))
        else:
            role = ""
            if line.startswith("    ") and found and not found[-1] and before and not before.startswith(" "):
                found += ["::", ""]
            found.append(line if line.startswith("    ") else _escaped(line))
        before = line or before
    return found


def _escaped(line: str) -> str:
    """Of shapes with any number of leading axes, `[*, C]`, the star is no emphasis."""
    return re.sub(r"\[\*(?=[\w,])", r"[\\*", line)


def _field(role: str, line: str, *, first: bool) -> str:
    """One line of a section."""
    item = re.fullmatch(r" {4}(\**[\w.]+): (.*)", line)
    if role in ("returns", "yields"):
        return f":{role}: {line.strip()}" if first else f"    {line.strip()}"
    if item:
        return f":{role} {item[1].replace('*', chr(92) + '*')}: {item[2]}"
    return f"    {line.strip()}" if line else ""


def anchors(app: Sphinx, name: str, source: list[str]) -> None:
    """Make targets of MyST of the anchors that pages have for readers without the site: `<a id="json"></a>`."""
    source[0] = re.sub(r'^<a id="([\w-]+)"></a>$', r"(\1)=", source[0], flags=re.MULTILINE)


def navigate(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the tables of contents of `navigation.toml` to their pages, where only the sidebar shows them."""
    order = tomllib.loads(NAVIGATION.read_text(encoding="utf-8"))
    if name == app.config.root_doc:
        source[0] += "".join(_toctree(pages, caption) for caption, pages in order["sidebar"].items())
    elif name in order["below"]:
        source[0] += _toctree(order["below"][name])


def _toctree(pages: list[str], caption: str = "") -> str:
    options = [":hidden:", ":maxdepth: 1", *[f":caption: {caption}"] * bool(caption)]
    options += [":glob:"] * any("*" in page for page in pages)
    return "\n".join(["", "```{toctree}", *options, "", *(f"/{page}" for page in pages), "```", ""])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("settings", Settings)
    app.connect("autodoc-process-docstring", fields)
    app.connect("source-read", anchors)
    app.connect("source-read", navigate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
