"""Changes of a text, by place: what they do not touch stays as it is, to the byte."""

import ast
import re
from collections.abc import Iterable, Iterator

from attrs import frozen

_LINE_END = re.compile(r"\r\n|\r|\n")  # what Python calls the end of a line; str.splitlines knows more


@frozen(order=True)
class Edit:
    """Characters that give way to others.

    Attributes:
        start: index of the first.
        end: index after the last.
        text: what stands there afterwards.
    """

    start: int
    end: int
    text: str = ""


class Source:
    """A program as text, in which nodes of its syntax tree can be found.

    Attributes:
        text: the whole program.
        newline: how its lines end.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
        end = _LINE_END.search(text)
        self.newline = end.group() if end else "\n"

    def index(self, line: int, column: int) -> int:
        """Index of a place, given as `ast` does: lines from 1, columns in bytes of UTF-8."""
        return self.starts[line - 1] + len(self.line(line).encode()[:column].decode())

    def span(self, node: ast.stmt | ast.expr | ast.keyword) -> tuple[int, int]:
        """Where a node begins and ends."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.index(node.lineno, node.col_offset), self.index(node.end_lineno, node.end_col_offset)

    def of(self, node: ast.stmt | ast.expr) -> str:
        """The text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def line(self, number: int) -> str:
        """A line, with its end."""
        end = self.starts[number] if number < len(self.starts) else len(self.text)
        return self.text[self.starts[number - 1] : end]

    def removal(self, node: ast.stmt) -> Edit:
        """The change that takes a statement away, with its lines where nothing else stands on them."""
        start, end = self.span(node)
        first, last = self.starts[node.lineno - 1], self.starts[(node.end_lineno or 0) - 1]
        before, after = self.text[first:start], self.text[end : last + len(self.line(node.end_lineno or 0))]
        if ";" in after.partition("#")[0]:
            return Edit(start, end + after.index(";") + 1 + len(re.split(r"\S", after.partition(";")[2])[0]))
        if before.strip():  # another statement, or the head of a compound one
            return Edit(first + len(re.sub(r"[ \t]*;?[ \t]*$", "", before)), end)
        if after.strip() and not after.strip().startswith(("# noqa", "# type:", "# isort", "# pylint")):
            return Edit(start, end + len(after) - len(after.lstrip()))  # a comment that may be about more than this
        return Edit(first, end + len(after))

    def apply(self, edits: Iterable[Edit]) -> str:
        """The text after all changes; one inside of another is not made."""
        parts, at = [], 0
        for edit in _joined(sorted(edits, key=lambda edit: (edit.start, -edit.end)), self.text):
            if edit.end <= at and edit.start < at:
                continue
            assert edit.start >= at, "two changes of one place"
            parts += [self.text[at : edit.start], edit.text]
            at = edit.end
        return "".join([*parts, self.text[at:]])


def _joined(edits: list[Edit], text: str) -> Iterator[Edit]:
    """Removals of neighbouring lines as one, which leaves no more blank lines than were on one side."""
    while edits:
        edit = edits.pop(0)
        while edits and not edit.text and not edits[0].text and edit.end == edits[0].start:
            edit = Edit(edit.start, edits.pop(0).end)
        if not edit.text and text[: edit.end].endswith(("\n", "\r")) and _follows_blank(text, edit.start):
            rest = re.compile(r"(?:[ \t]*(?:\r\n|\r|\n))*").match(text, edit.end)
            assert rest is not None
            edit = Edit(edit.start, rest.end())
        yield edit


def _follows_blank(text: str, start: int) -> bool:
    """Whether a line begins here, and the one before it is blank or there is none."""
    return start == 0 or re.search(r"(?:^|[\r\n])[ \t]*(?:\r\n|\r|\n)$", text[:start]) is not None
