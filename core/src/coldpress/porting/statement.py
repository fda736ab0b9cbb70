"""An import statement written anew, with the comments that stand between its names."""

import ast
import io
import tokenize
from collections.abc import Sequence

from attrs import frozen

from coldpress.porting.edit import Edit, Source

_WIDTH = 88  # of a line, as most formatters have it


@frozen
class Name:
    """A name that a statement imports.

    Attributes:
        module: where it is imported from.
        name: what it is called there.
        local: what the program calls it.
        comments: that stood before it on lines of their own, and behind it.
    """

    module: str
    name: str
    local: str
    comments: tuple[tuple[str, ...], str] = ((), "")

    def __str__(self) -> str:
        return self.name if self.name == self.local else f"{self.name} as {self.local}"


def write_from(source: Source, node: ast.ImportFrom, names: Sequence[Name]) -> Edit:
    """`from ... import ...` with other modules and names; where only the module changes, all else stays in place."""
    start, end = source.span(node)
    modules = list(dict.fromkeys(name.module for name in names))
    before = [(alias.name, alias.asname or alias.name) for alias in node.names]
    text = source.of(node)
    if (
        len(modules) == 1
        and before == [(n.name, n.local) for n in names]
        and (node.module or "") in text[len("from") :]
    ):
        first = text.index(node.module or "", len("from"))
        return Edit(start + first, start + first + len(node.module or ""), modules[0])
    indent = _indent(source, node)
    parts = [_from(module, [n for n in names if n.module == module], indent, source) for module in modules]
    return Edit(start, end, _together(source, node, parts))


def write_import(source: Source, node: ast.Import, statements: Sequence[str]) -> Edit:
    """Statements in place of an `import`."""
    return Edit(*source.span(node), _together(source, node, statements))


def comments_of(source: Source, node: ast.ImportFrom) -> dict[str, tuple[tuple[str, ...], str]]:
    """Comments of each name of a statement: on lines before it, and behind it."""
    above: dict[str, tuple[str, ...]] = {}
    behind: dict[str, str] = {}
    waiting: list[str] = []
    last, at = "", 0
    aliases = {source.index(alias.lineno, alias.col_offset): alias.name for alias in node.names}
    local = Source(source.of(node))
    offset = source.span(node)[0]
    for token in tokenize.generate_tokens(io.StringIO(local.text, newline="").readline):
        if token.type not in (tokenize.NAME, tokenize.OP, tokenize.COMMENT):
            continue
        where = offset + local.starts[token.start[0] - 1] + token.start[1]
        if where in aliases and token.type != tokenize.COMMENT:
            last, at = aliases[where], token.start[0]
            above[last], waiting = tuple(waiting), []
        elif token.type == tokenize.COMMENT and last and token.start[0] == at:
            behind[last] = token.string
        elif token.type == tokenize.COMMENT:
            waiting.append(token.string)
    return {name: (above.get(name, ()), behind.get(name, "")) for name in aliases.values()}


def _from(module: str, names: Sequence[Name], indent: str, source: Source) -> str:
    line = f"from {module} import {', '.join(map(str, names))}"
    short = len(names) == 1 or len(indent) + len(line) <= _WIDTH
    if short and not any(any(name.comments) for name in names):
        return line
    lines = []
    for name in names:
        before, behind = name.comments
        lines += [f"{indent}    {comment}" for comment in before]
        lines.append(f"{indent}    {name}," + (f"  {behind}" if behind else ""))
    return source.newline.join([f"from {module} import (", *lines, f"{indent})"])


def _indent(source: Source, node: ast.stmt) -> str:
    line = source.line(node.lineno)
    return line[: len(line) - len(line.lstrip(" \t\f"))]


def _together(source: Source, node: ast.stmt, parts: Sequence[str]) -> str:
    """Statements where one was: on lines of their own, or on its line where others stand there."""
    start, end = source.span(node)
    line, last = source.starts[node.lineno - 1], source.starts[(node.end_lineno or 0) - 1]
    rest = source.text[end : last + len(source.line(node.end_lineno or 0))]
    alone = not source.text[line:start].strip() and ";" not in rest.partition("#")[0]
    return (source.newline + _indent(source, node) if alone else "; ").join(parts)
