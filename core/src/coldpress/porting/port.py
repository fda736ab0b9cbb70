"""A script of llm-compressor's, made one of ours: its syntax tree says what to change, its text is changed in place."""

import ast
from collections.abc import Iterator
from typing import Literal

from attrs import define, field, frozen

from coldpress.arguments import WITHOUT_EFFECT, argument_names
from coldpress.errors import ArgumentError
from coldpress.porting.edit import Edit, Source
from coldpress.porting.equivalents import Equivalent, Kind, is_foreign
from coldpress.porting.names import Program, Use, read_program
from coldpress.porting.statement import Name, comments_of, write_from, write_import
from coldpress.porting.uses import Uses
from coldpress.spelling import suggest

RemarkKind = Literal["dropped", "kept", "missing", "note"]

_KINDS: dict[Kind, RemarkKind] = {
    "moved": "note",
    "dropped": "dropped",
    "expression": "note",
    "reader": "dropped",
    "patch": "dropped",
    "kept": "kept",
    "missing": "missing",
}
_WITHOUT_IMPORT: tuple[Kind, ...] = ("dropped", "expression", "reader", "patch")
_IMPORTERS = ("import_module", "__import__", "find_spec")


@frozen(order=True)
class Remark:
    """What a user should know of one place.

    Attributes:
        line: of the script as it was, from 1.
        name: what it is about, as the script writes it.
        kind: dropped, kept as it is, missing here, or worth a note.
        why: the reason, and what to do.
    """

    line: int
    name: str
    kind: RemarkKind
    why: str


@frozen
class Ported:
    """A script after it was ported.

    Attributes:
        text: the program.
        remarks: in the order of the lines that they are about.
    """

    text: str
    remarks: tuple[Remark, ...]


def port(text: str, name: str = "the script") -> Ported:
    """Rewrite the imports of a script that was written for llm-compressor.

    Only imports change, and calls that have no use here; comments and layout stay.
    What has no equivalent stays as it is and is remarked on.

    Args:
        text: the program.
        name: what to call it in a message.

    Raises:
        ArgumentError: it is no Python, or imports nothing of llm-compressor or compressed-tensors.
    """
    tree = _parse(text, name)
    source, program = Source(text), read_program(tree)
    work = _Port(source, program, Uses(source, program))
    statements = list(work.program.imports())
    if not statements:
        raise ArgumentError(
            f"{name} imports nothing of llmcompressor or compressed_tensors: there is nothing to port{_notebook(text)}"
        )
    for statement in statements:
        if isinstance(statement, ast.ImportFrom):
            work.port_from(statement)
        else:
            work.port_import(statement)
    work.look_at_calls()
    return work.result()


def _parse(text: str, name: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise ArgumentError(f"{name}:{error.lineno or 1}: this is no Python: {error.msg}{_notebook(text)}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ArgumentError(f"{name}: this is no Python: {error or type(error).__name__}") from error


def _notebook(text: str) -> str:
    """The end of a message about what may be a notebook, which is JSON, and at times valid Python."""
    return "; a notebook is exported with: jupyter nbconvert --to script" if text.lstrip().startswith("{") else ""


@define(eq=False)
class _Port:
    """One script while it is ported.

    Attributes:
        source: its text.
        program: its names.
        uses: changes what imported names stand for.
        edits: of import statements.
        removed: import statements that go.
        remarks: for the user.
        bound: local name of a module -> the statements that import what is used of it.
    """

    source: Source
    program: Program
    uses: Uses
    edits: list[Edit] = field(factory=list)
    removed: set[ast.stmt] = field(factory=set)
    remarks: list[Remark] = field(factory=list)
    bound: dict[str, tuple[str, ...]] = field(factory=dict)

    def port_from(self, node: ast.ImportFrom) -> None:
        """`from llmcompressor... import ...`."""
        module, names = node.module or "", []
        comments = comments_of(self.source, node)
        for alias in node.names:
            local = alias.asname or alias.name
            found = self._module(module, alias.name, local) or self._settled(module, alias.name, local)
            self._remark(node.lineno, alias.name, found)
            if found.kind in _WITHOUT_IMPORT:
                continue
            if found == Equivalent("moved", "coldpress", "oneshot"):
                self.uses.oneshots.update(self.program.uses.get(local, []))
            names.append(Name(found.module, found.name, local, comments[alias.name]))
        if names:
            self.edits.append(write_from(self.source, node, names))
        else:
            self.removed.add(node)

    def _settled(self, module: str, name: str, local: str) -> Equivalent:
        """What a name is here, and its uses changed where that takes more than another import."""
        found = self.program.equivalent(module, name)
        if name == "*":
            return Equivalent("missing", module, name, "name what is used of it, and port again")
        if found.kind not in _WITHOUT_IMPORT:
            return found
        uses = [Use(node, local, found) for node in self.program.uses.get(local, [])]
        if local in self.program.own or not all(self.uses.can_change(use) for use in uses):
            return Equivalent("missing", module, name, "a use of it would be dropped; it is used in other ways, too")
        for use in uses:
            self.uses.change(use)
        return found

    def _module(self, module: str, name: str, local: str) -> Equivalent | None:
        """What a module is here that is imported like a name: one module that has all that is used of it."""
        if self.program.equivalent(module, name).kind != "missing" or local in self.program.own:
            return None
        uses = self.program.uses_below(local, f"{module}.{name}")
        homes = {use.equivalent.module for use in uses if use.equivalent.kind == "moved"}
        if len(homes) != 1 or not all(use.equivalent.kind == "moved" and self.uses.can_change(use) for use in uses):
            return None
        parent, dot, last = homes.pop().rpartition(".")
        if not dot:
            return None
        for use in uses:
            self.uses.change(use, f"{local}.{use.equivalent.name}")
            self._remark(use.node.lineno, use.name, use.equivalent)
        return Equivalent("moved", parent, last)

    def port_import(self, node: ast.Import) -> None:
        """`import llmcompressor`, with its parts, and what else the statement imports."""
        plain = [f"import {a.name} as {a.asname}" if a.asname else f"import {a.name}" for a in node.names]
        statements: list[str] = []
        for alias, as_it_was in zip(node.names, plain, strict=True):
            local = alias.asname or alias.name.partition(".")[0]
            if is_foreign(alias.name) and local not in self.bound:
                self.bound[local] = self._binding(node.lineno, alias)
            found = self.bound[local] if is_foreign(alias.name) else ("",)
            statements += [one or as_it_was for one in found]
        if not statements:
            self.removed.add(node)
        elif statements != plain:
            self.edits.append(write_import(self.source, node, statements))

    def _binding(self, line: int, alias: ast.alias) -> tuple[str, ...]:
        """Statements that import what is used of a module, its uses changed; an empty one is that of the script."""
        root = alias.name.partition(".")[0]
        local, module = alias.asname or root, alias.name if alias.asname else root
        uses = self.program.uses_below(local, module)
        for use in uses:
            self._remark(use.node.lineno, use.name, use.equivalent)
        as_it_was = Equivalent("kept", module, alias.name, "works only where that library is installed")
        stuck = any(use.equivalent.kind in ("kept", "missing") or not self.uses.can_change(use) for use in uses)
        if local in self.program.own or stuck or (not uses and root != "llmcompressor"):
            self._remark(line, alias.name, as_it_was)
            return ("",)
        homes = list(dict.fromkeys(use.equivalent.module for use in uses if use.equivalent.kind == "moved"))
        homes = homes or ([] if uses else ["coldpress"])
        short = alias.asname if len(homes) == 1 else None
        for use in uses:
            self.uses.change(use, f"{short or use.equivalent.module}.{use.equivalent.name}")
        if short:
            return (f"import {homes[0]} as {short}",)
        return tuple(f"import {home}" for home in homes if not any(o.startswith(f"{home}.") for o in homes))

    def _remark(self, line: int, name: str, found: Equivalent) -> None:
        if found.why:
            self.remarks.append(Remark(line, name, _KINDS[found.kind] if found.offered else "missing", found.why))

    def look_at_calls(self) -> None:
        """Remark on arguments of `oneshot` that are not known here, and on modules that are imported by their names."""
        for node in ast.walk(self.program.tree):
            if isinstance(node, ast.Call) and node.func in self.uses.oneshots:
                self.remarks += [remark for word in node.keywords for remark in _of_argument(word)]
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                function = getattr(node.func, "attr", getattr(node.func, "id", ""))
                value = node.args[0].value
                if function in _IMPORTERS and isinstance(value, str) and is_foreign(value):
                    self.remarks.append(Remark(node.lineno, value, "missing", "it is imported by its name"))

    def result(self) -> Ported:
        """The script with all changes."""
        removed = self.removed | self.uses.removed
        removals = [removal for body in _bodies(self.program.tree) for removal in self._removals(body, removed)]
        text = self.source.apply([*self.edits, *self.uses.edits, *removals])
        ast.parse(text)
        return Ported(text, tuple(sorted(set(self.remarks))))

    def _removals(self, body: list[ast.stmt], removed: set[ast.stmt]) -> Iterator[Edit]:
        """The changes that take statements out of a body, which stays one."""
        gone = [node for node in body if node in removed]
        if len(gone) == len(body) and gone and body is not self.program.tree.body:
            yield Edit(*self.source.span(gone.pop(0)), "pass")
        yield from map(self.source.removal, gone)


def _bodies(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    """Every list of statements of a program."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                yield body


def _of_argument(word: ast.keyword) -> Iterator[Remark]:
    """What there is to say of an argument of `oneshot`."""
    known = argument_names()
    if word.arg in WITHOUT_EFFECT:
        yield Remark(word.value.lineno, word.arg, "note", f"it has no effect: {WITHOUT_EFFECT[word.arg]}")
    elif word.arg is not None and word.arg not in known:
        yield Remark(word.value.lineno, word.arg, "missing", f"oneshot has no such argument{suggest(word.arg, known)}")
