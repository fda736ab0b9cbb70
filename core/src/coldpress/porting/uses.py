"""What is done where an imported name is used: another name, an expression, or an argument in place of its call."""

import ast

from attrs import define, field

from coldpress.porting.edit import Edit, Source
from coldpress.porting.names import Program, Use

_FIRST = ("model", "module")  # what the first parameter of a dropped function may be called
_PLAIN = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)  # need no parentheses anywhere


@define(eq=False)
class Uses:
    """The changes of one script, but for its imports.

    Attributes:
        source: its text.
        program: its names.
        edits: changes of the text.
        removed: statements that go.
        oneshots: expressions that stand for `oneshot`.
    """

    source: Source
    program: Program
    edits: list[Edit] = field(factory=list)
    removed: set[ast.stmt] = field(factory=set)
    oneshots: set[ast.expr] = field(factory=set)

    def can_change(self, use: Use) -> bool:
        """Whether what a name is here can stand where it is used, and the place is known."""
        try:  # before Python 3.12 places inside of f-strings may be wrong
            there = "".join(self.source.of(use.node).split()) == use.name
        except (UnicodeDecodeError, IndexError):
            there = False
        return there and (use.equivalent.kind != "dropped" or self._argument(use) is not None)

    def change(self, use: Use, name: str = "") -> None:
        """Write what a name is here where it is used.

        Args:
            use: of a name that has moved, is dropped, or is an expression.
            name: what it is called after it has moved.
        """
        kind = use.equivalent.kind
        if kind == "dropped":
            self._drop(use)
            return
        if use.equivalent.module == "coldpress" and use.equivalent.name == "oneshot":
            self.oneshots.add(use.node)
        self.edits.append(Edit(*self.source.span(use.node), name if kind == "moved" else use.equivalent.name))

    def _argument(self, use: Use) -> ast.expr | None:
        """What is in place of a call; None where the name is not called, or with nothing."""
        call = self.program.parents[use.node]
        if not isinstance(call, ast.Call) or call.func is not use.node:
            return None
        named = [word.value for word in call.keywords if word.arg in _FIRST]
        found = [*call.args[:1], *named]
        return found[0] if found and not isinstance(found[0], ast.Starred) else None

    def _drop(self, use: Use) -> None:
        call, argument = self.program.parents[use.node], self._argument(use)
        assert isinstance(call, ast.Call)
        assert argument is not None
        statement = self.program.parents[call]
        if isinstance(statement, ast.Expr) and isinstance(argument, (ast.Name, ast.Attribute)):
            self.removed.add(statement)
            return
        if isinstance(statement, ast.Assign) and [ast.dump(argument)] == [
            ast.dump(target).replace("Store()", "Load()") for target in statement.targets
        ]:
            self.removed.add(statement)
            return
        start, end = self.source.span(call)
        first, last = self.source.span(argument)
        plain = isinstance(argument, _PLAIN)
        self.edits += [Edit(start, first, "" if plain else "("), Edit(last, end, "" if plain else ")")]
