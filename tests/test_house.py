"""The promises of how we write, counted: budgets, names, who imports whom, and what an import costs."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECTS = sorted(path.parent for path in [ROOT / "core/pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")])
PACKAGES = {package.name: package for project in PROJECTS for package in project.glob("src/*/")}
SOURCES = sorted(path for package in PACKAGES.values() for path in package.rglob("*.py"))
CORE = ROOT / "core/src/coldpress"

CONTRACT = sorted(CORE.glob("*.py"))  # the ring: what plugin authors read, and how their plugins are found
CONTRACT_LINES = 3800

# Of W4A16 transformers is asked whether it can load the model, which imports it.
SCHEMES = ("W4A16_ASYM", "W8A8", "FP8_DYNAMIC", "NVFP4A16", "MXFP4A16")

# A reason beats a budget: file, or file and function -> the reason.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS: dict[str, str] = {
    "core/src/coldpress/cli/compress.py:compress": "a command has one parameter for each of its options",
    "core/src/coldpress/cli/train.py:train": "a command has one parameter for each of its options",
    "core/src/coldpress/cli/trace.py:trace": "a command has one parameter for each of its options",
    "core/src/coldpress/cli/evaluate.py:evaluate": "a command has one parameter for each of its options",
    "core/src/coldpress/cli/model_free.py:convert": "a command has one parameter for each of its options",
    "core/src/coldpress/entrypoints/model_free.py:convert": "a public door",
    "core/src/coldpress/entrypoints/model_free.py:model_free_ptq": "a public door",
    "core/src/coldpress/evaluation/divergence.py:divergence": "a public door",
    "core/src/coldpress/evaluation/perplexity.py:perplexity": "a public door",
}


class Function(NamedTuple):
    where: str  # path:function
    path: Path
    node: ast.FunctionDef | ast.AsyncFunctionDef


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _functions() -> Iterator[Function]:
    for path in SOURCES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Function(f"{_name(path)}:{node.name}", path, node)


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement to the last; the docstring is not counted."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def _is_mathematics(path: Path) -> bool:
    """`algorithm.py`, or a file of a folder `algorithm` where the mathematics has several pages."""
    return path.name == "algorithm.py" or path.parent.name == "algorithm"


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = node.args
    names = [one.arg for one in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    return [name for name in names if name not in ("self", "cls")]


def _is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A kernel of Triton is handed each matrix, stride and constant by itself."""
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything the file imports, at any depth, `from a import b` as a.b."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _unexpected(path: Path, *allowed: str) -> list[str]:
    """Imports of the file that are neither of the standard library nor below one of the allowed names."""
    return [
        f"{_name(path)}:{line} imports {name}"
        for line, name in _imports(path)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(name == one or name.startswith(f"{one}.") for one in allowed)
    ]


def _modules_after(statement: str) -> set[str]:
    """Names in sys.modules of a fresh process that has run the statement."""
    program = f"{statement}\nimport json, sys\nprint('\\n' + json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_no_file_is_longer_than_400_lines():
    long = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}

    assert {name: lines for name, lines in long.items() if lines > 400 and name not in LONG_FILES} == {}


def test_no_function_is_longer_than_a_page():
    long = {
        where: _body_lines(node)
        for where, path, node in _functions()
        if _body_lines(node) > (70 if _is_mathematics(path) else 40) and where not in LONG_FUNCTIONS
    }

    assert long == {}


def test_no_function_has_more_than_six_parameters():
    many = {
        where: len(_parameters(node))
        for where, _, node in _functions()
        if len(_parameters(node)) > 6 and where not in MANY_PARAMETERS and not _is_kernel(node)
    }

    assert many == {}


def test_every_exception_to_a_budget_is_still_needed():
    lines = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    functions = {where: node for where, _, node in _functions()}

    assert all(lines.get(name, 0) > 400 for name in LONG_FILES)
    assert all(where in functions and _body_lines(functions[where]) > 40 for where in LONG_FUNCTIONS)
    assert all(where in functions and len(_parameters(functions[where])) > 6 for where in MANY_PARAMETERS)


def test_every_package_says_that_it_is_typed():
    assert [name for name, package in PACKAGES.items() if not (package / "py.typed").is_file()] == []


def test_no_file_is_named_for_nothing():
    forbidden = {"util", "utils", "helper", "helpers", "common", "base", "manager", "misc"}

    assert [_name(path) for path in SOURCES if {path.stem, path.parent.name} & forbidden] == []


def test_every_module_says_what_it_holds():
    assert [_name(path) for path in SOURCES if not ast.get_docstring(_tree(path))] == []


def test_nothing_is_printed_past_the_console():
    calls = [
        f"{_name(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]

    assert calls == []


def test_what_a_plugin_author_reads_is_short():
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in CONTRACT) <= CONTRACT_LINES


def test_what_a_plugin_author_reads_knows_no_transformers():
    paths = [path for path in CONTRACT if path.stem != "attention"]  # which is a function among those of transformers

    assert [name for path in paths for _, name in _imports(path) if name.startswith("transformers")] == []


@pytest.fixture(scope="module")
def floors() -> list[list[str]]:
    """The rooms of core from the top floor down, as import-linter reads them; those of a floor together."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one.get("type") == "layers"]
    return [re.split(r"\s*[|:]\s*", layer) for layer in layers]


def _arrows() -> dict[tuple[str, str], str]:
    """Which room of core, a folder or a file at the top, imports which, each pair with a file that does."""
    found = {}
    for path in sorted(CORE.rglob("*.py")):
        room = path.relative_to(CORE).parts[0].removesuffix(".py")
        for line, name in _imports(path):
            parts = name.split(".")
            if parts[0] == "coldpress" and len(parts) > 1 and _is_room(parts[1]) and parts[1] != room:
                found.setdefault((room, parts[1]), f"{_name(path)}:{line}")
    return found


def _is_room(name: str) -> bool:
    return (CORE / name).is_dir() or (CORE / f"{name}.py").is_file()


def test_every_room_of_core_has_a_floor(floors):
    rooms = {path.name.removesuffix(".py") for path in CORE.iterdir() if path.suffix == ".py" or path.is_dir()}

    assert rooms - {"__init__", "__main__", "__pycache__", "py.typed"} == {room for floor in floors for room in floor}


def test_no_arrow_between_the_rooms_of_core_runs_back_up(floors):
    height = {room: number for number, floor in enumerate(reversed(floors)) for room in floor}
    ring = {room for floor in floors if "state" in floor for room in floor}
    up = {
        f"{source} -> {target}": where
        for (source, target), where in _arrows().items()
        if source in height and height[target] >= height[source] and not {source, target} <= ring
    }

    assert up == {}


def test_no_room_of_core_imports_itself_by_way_of_others(floors):
    ring = {room for floor in floors if "state" in floor for room in floor}  # one room, whose files know each other
    below: dict[str, set[str]] = {}
    for source, target in _arrows():
        pair = ["the ring" if room in ring else room for room in (source, target)]
        if pair[0] != pair[1] and source != "__init__":
            below.setdefault(pair[0], set()).add(pair[1])
    reached = {room: set(rooms) for room, rooms in below.items()}
    for _ in below:  # long enough for any chain
        for rooms in reached.values():
            rooms |= {further for room in rooms for further in below.get(room, ())}

    assert [room for room, rooms in reached.items() if room in rooms] == []


def test_algorithms_import_torch_and_numerics_only():
    words = ("NumberFormat", "QuantizationArgs", "number_format")  # that numerics are called with
    allowed = ("torch", "triton", "coldpress.numerics", *(f"coldpress.plugin.{word}" for word in words))
    algorithms = [path for path in SOURCES if _is_mathematics(path)]

    assert algorithms
    for path in algorithms:
        own = f"{path.parent.parent.name}.algorithm"  # a folder's pages know each other
        assert _unexpected(path, *allowed, *([own] if path.parent.name == "algorithm" else [])) == []


def test_numerics_import_torch_and_schemes_only():
    allowed = ("torch", "coldpress.numerics", "coldpress.schemes", "coldpress.errors")

    assert [one for path in (CORE / "numerics").rglob("*.py") for one in _unexpected(path, *allowed)] == []


def test_plugins_import_public_names_only(projects):
    unexpected = []
    for package, folder in PACKAGES.items():
        if package == "coldpress":
            continue
        declared = projects[package.replace("_", "-")]["dependencies"]
        own = [re.split(r"[^\w-]", line)[0].replace("-", "_") for line in declared]  # coldpress is always one of them
        for path in sorted(folder.rglob("*.py")):
            unexpected += _unexpected(path, package, "attrs", "torch", "triton", *own)  # torch for GPUs brings triton
            unexpected += [
                f"{_name(path)}:{line} reaches into {name}"
                for line, name in _imports(path)
                if name.startswith("coldpress.")
                and name.count(".") > 1
                and not name.startswith(
                    ("coldpress.plugin.", "coldpress.numerics.", "coldpress.schemes.", "coldpress.testing.")
                )
            ]

    assert unexpected == []


def test_importing_coldpress_is_lazy():
    heavy = {"torch", "transformers", "datasets", "numpy", "pandas", "rich", "typer"} | (set(PACKAGES) - {"coldpress"})

    assert _modules_after("import coldpress") & heavy == set()


def test_help_imports_neither_torch_nor_a_plugin():
    heavy = {"torch", "transformers", "datasets", "numpy"} | (set(PACKAGES) - {"coldpress"})
    ask = (
        "import sys; sys.argv = ['coldpress', '--help']\n"
        "from coldpress.cli import main\n"
        "try: main()\nexcept SystemExit: pass"
    )

    assert _modules_after(ask) & heavy == set()


def test_without_a_model_no_compiler_is_imported(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    save_file({"model.layers.0.mlp.down_proj.weight": torch.randn(32, 128)}, folder / "model.safetensors")
    compress = f"from coldpress import model_free_ptq\nfor scheme in {SCHEMES!r}:\n    " + (
        f"model_free_ptq({str(folder)!r}, {str(tmp_path)!r} + '/' + scheme, scheme=scheme, quiet=True)"
    )

    assert _modules_after(compress) & {"torch._dynamo", "sympy", "transformers"} == set()
    assert all((tmp_path / scheme / "model.safetensors").is_file() for scheme in SCHEMES)


@pytest.fixture(scope="module")
def projects() -> dict[str, dict]:
    """Name of each distribution -> its [project] table."""
    tables = [tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"] for folder in PROJECTS]
    return {table["name"]: table for table in tables}


def test_every_distribution_has_an_extra_of_core(projects):
    extras = projects["coldpress"]["optional-dependencies"]

    for name in projects.keys() - {"coldpress"}:
        short = name.removeprefix("coldpress-")
        assert any(line.startswith(name) for line in extras[short])
        assert short in extras["all"][0]


def test_distributions_are_alike(projects):
    for field in ("version", "license", "requires-python"):
        assert len({table[field] for table in projects.values()}) == 1
    for name in projects.keys() - {"coldpress"}:
        assert projects[name]["dependencies"][0] == "coldpress>=0.1,<0.2"


# How we used to speak, and no longer do; STYLE's "say it in the field's words" has what to write instead.
DIALECT = [
    r"\bsomebody\b",
    r"\bnobody\b",
    r"\bthose who\b",
    r"\bputs? out\b",
    r"\bled through\b",
    r"\bsightings?\b",
    r"\bledger\b",
    r"\bwavers?\b",
    r"\bthe signal moved\b",
    r"\bmoves the signal\b",
    r"\btwins?\b",
    r"\bstrangers?\b",
    r"\bhands? on\b",
    r"\bwish(es)?\b",
]


def test_the_field_s_words_are_used():
    texts = [*SOURCES, *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md"), ROOT / "README.md"]
    found = [
        f"{_name(path)}:{number}: {match[0]}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := re.search("|".join(DIALECT), line, flags=re.IGNORECASE))
    ]

    assert found == []


SPOKEN = {"said", "told", "heard"}  # of values: given, configured, expected, reported


def test_values_do_not_speak():
    found = [
        f"{_name(path)}:{node.lineno}: {name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (getattr(node, "id", None), getattr(node, "arg", None), getattr(node, "attr", None))
        if isinstance(name, str) and name.strip("_") in SPOKEN
    ]

    assert found == []
