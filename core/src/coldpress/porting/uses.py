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
        return there and self._place(use) is not None

    def _place(self, use: Use) -> ast.AST | None:
        """What there must be around a use, or in it, for its change; None where it is missing."""
        if use.equivalent.kind == "dropped":
            return self._argument(use)
        if use.equivalent.kind == "reader":
            found = self._converter(use)
            return None if found is None else found[0]
        return self._assignment(use) if use.equivalent.kind == "patch" else use.node

    def change(self, use: Use, name: str = "") -> None:
        """Write what a name is here where it is used.

        Args:
            use: of a name that has moved or goes, or that an expression stands for.
            name: what it is called after it has moved.
        """
        kind = use.equivalent.kind
        if kind == "dropped":
            self._drop(use)
            return
        if kind == "reader":
            self._drop_converter(use)
            return
        if kind == "patch":
            self.removed.add(self._assignment(use) or ast.Pass())
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

    def _assignment(self, use: Use) -> ast.stmt | None:
        """The statement that puts a patch in place; None where the name is used in another way."""
        node: ast.AST = use.node
        while isinstance(node, ast.expr):
            node = self.program.parents[node]
        patched = isinstance(node, ast.Assign) and all(isinstance(target, ast.Attribute) for target in node.targets)
        return node if patched and isinstance(node, ast.Assign) else None

    def _converter(self, use: Use) -> tuple[ast.Call, ast.keyword] | None:
        """The call of which a reader is the argument converter=, and that argument; None where it is used otherwise."""
        made = self.program.parents[use.node]
        word = self.program.parents.get(made)
        if not isinstance(made, ast.Call) or made.func is not use.node or not isinstance(word, ast.keyword):
            return None
        call = self.program.parents[word]
        return (call, word) if isinstance(call, ast.Call) and word.arg == "converter" else None

    def _drop_converter(self, use: Use) -> None:
        """Take the argument away; where a checkpoint is converted, it is said what to: whole weights."""
        found = self._converter(use)
        assert found is not None
        call, word = found
        start, end = self.source.span(word)
        function = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if function == "convert_checkpoint":
            self.edits.append(Edit(start, end, 'to="dense"'))
            return
        ends = [self.source.span(one)[1] for one in call.args]
        ends += [self.source.span(one)[1] for one in call.keywords]
        self.edits.append(Edit(max((one for one in ends if one <= start), default=start), end))

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
