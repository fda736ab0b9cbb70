"""Which names of a program stand for what is imported from elsewhere, and where they are used."""

import ast
from collections.abc import Iterator

from attrs import define, frozen

from coldpress.porting.equivalents import Equivalent, find_equivalent, is_foreign

# Fields that a script may assign on a scheme of compressed-tensors; ours are frozen.
SCHEME_FIELDS = (
    *("targets", "weights", "input_activations", "output_activations", "format"),
    *("num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder"),
    *("scale_dtype", "scale_bits", "zp_dtype", "signed_scales", "observer", "observer_kwargs"),
)
_SCHEME_METHODS = frozenset({"model_copy", "model_dump", "model_dump_json", "model_validate"})


@frozen(eq=False)
class Use:
    """An expression that stands for a name of a foreign module.

    Attributes:
        node: `dispatch_model`, or the whole of `llmcompressor.utils.dispatch_model`.
        name: how it is written.
        equivalent: what it is here.
    """

    node: ast.expr
    name: str
    equivalent: Equivalent


@define(eq=False)
class Program:
    """A syntax tree with what its names are.

    Attributes:
        tree: the whole program.
        parents: of every node but the root.
        uses: local name -> where it is read.
        own: names that the program binds itself, beside foreign imports.
        changes_schemes: it assigns to fields of schemes, or asks for what only compressed-tensors' have.
    """

    tree: ast.Module
    parents: dict[ast.AST, ast.AST]
    uses: dict[str, list[ast.Name]]
    own: set[str]
    changes_schemes: bool

    def imports(self) -> Iterator[ast.Import | ast.ImportFrom]:
        """Every import of a foreign package, at any depth."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and is_foreign(node.module):
                yield node
            if isinstance(node, ast.Import) and any(is_foreign(alias.name) for alias in node.names):
                yield node

    def equivalent(self, module: str, name: str) -> Equivalent:
        """What a name of a foreign module is in this program."""
        found = find_equivalent(module, name)
        if found.kind == "moved" and self.changes_schemes and module.startswith("compressed_tensors.quantization"):
            return Equivalent("kept", module, name, "the script changes fields of a scheme, and ours are frozen")
        return found

    def uses_below(self, local: str, module: str) -> list[Use]:
        """What is read of a module that is bound to a local name."""
        return [self._attribute(name, module) for name in self.uses.get(local, [])]

    def _attribute(self, name: ast.Name, module: str) -> Use:
        """The shortest chain of attributes that begins here and has an equivalent; else the whole chain."""
        node: ast.expr = name
        path = [name.id]
        use = Use(node, name.id, Equivalent("missing", module, name.id, "the module itself has no equivalent"))
        while isinstance(parent := self.parents[node], ast.Attribute) and isinstance(parent.ctx, ast.Load):
            node, path = parent, [*path, parent.attr]
            use = Use(node, ".".join(path), self.equivalent(module, parent.attr))
            if use.equivalent.kind != "missing":
                break
            module = f"{module}.{parent.attr}"
        return use


def read_program(tree: ast.Module) -> Program:
    """Look at every name of a program once."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    program = Program(tree, parents, {}, set(), changes_schemes=False)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            program.uses.setdefault(node.id, []).append(node)
        elif isinstance(node, ast.Attribute):
            assigned = not isinstance(node.ctx, ast.Load) and node.attr in SCHEME_FIELDS
            program.changes_schemes |= assigned or node.attr in _SCHEME_METHODS
        else:
            program.own.update(_bound(node))
    return program


def _bound(node: ast.AST) -> list[str]:
    """The names that a node binds, but for those of foreign imports."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        return [node.name] if node.name else []
    if isinstance(node, ast.ImportFrom) and not is_foreign(node.module):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Import):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names if not is_foreign(alias.name)]
    return []
