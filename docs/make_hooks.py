"""Writes docs/hooks.md from the docstrings of the code; `python docs/make_hooks.py`, and a test says when to."""

import inspect
import re
from pathlib import Path

from coldpress import attachment, hookspecs, lifecycle, modifier, pipeline, scratch, state
from coldpress.stage import Batch, Layer, Stage

TARGET = Path(__file__).with_name("hooks.md")
HEAD = """# Hooks

*Written by `docs/make_hooks.py` from the docstrings of the code; change those.*
"""
TRAINING = (lifecycle.Training, lifecycle.Forward)
HANDED = (Stage, Layer, Batch, state.State, scratch.Scratch)


def page() -> str:
    """The whole text of docs/hooks.md."""
    parts = [HEAD, _opening(), "## The four hooks\n", *map(_hook, _hooks())]
    parts += ["## What hooks are handed\n", *map(_class, HANDED)]
    parts += ["## What a modifier says of itself\n", _class(modifier.Modifier), _traits()]
    parts += ["## What a modifier does in training\n", _class(lifecycle.Lifecycle), *map(_class, TRAINING)]
    parts += ["## What an attachment implements\n", _class(attachment.Attachment)]
    parts += ["## What a pipeline implements\n", _class(pipeline.Pipeline)]
    return "\n".join(parts)


def _opening() -> str:
    """The lifecycle, drawing included."""
    summary, drawing, rest = re.split(r"\n\n", inspect.getdoc(hookspecs) or "", maxsplit=2)
    return f"{summary}\n\n```text\n{inspect.cleandoc(drawing)}\n```\n\n{rest}\n"


def _hooks() -> list[tuple[str, object]]:
    marked = vars(hookspecs).items()
    return [(name, value) for name, value in marked if hasattr(value, f"{hookspecs.PROJECT}_spec")]


def _hook(item: tuple[str, object]) -> str:
    name, function = item
    signature = ", ".join(inspect.signature(function).parameters)  # type: ignore[arg-type]
    return f"### `{name}({signature})`\n\n{_prose(inspect.getdoc(function) or '')}\n"


def _class(cls: type) -> str:
    """A class: its docstring, and one line for each public method."""
    lines = [f"### `{cls.__name__}`\n", _prose(inspect.getdoc(cls) or ""), ""]
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(inspect.unwrap(function)):
            continue
        parameters = [each for each in inspect.signature(function).parameters if each not in ("self", "cls")]
        call = "" if isinstance(value, property) else f"({', '.join(parameters)})"
        first = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"- `.{name}{call}`: {first}")
    return "\n".join(lines).rstrip() + "\n"


def _traits() -> str:
    source = inspect.getsource(modifier)
    found = re.findall(r'^([A-Z_]+) = "\w+"\n"""(.*?)"""', source, re.MULTILINE | re.DOTALL)
    return (
        "Traits, in the class variable `traits`:\n\n" + "\n".join(f"- `{name}`: {said}" for name, said in found) + "\n"
    )


def _prose(docstring: str) -> str:
    """A docstring in Google's style as Markdown: its sections become lists."""
    lines = []
    for line in docstring.splitlines():
        heading = re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line)
        item = re.fullmatch(r"    (\w+): (.*)", line)
        if heading:
            lines += [f"{heading[1]}:", ""]
        elif item:
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
