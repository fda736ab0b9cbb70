"""Promises that plugins of every kind make: how settings are declared, and what an import does."""

import inspect
import json
import os
import re
import subprocess
import sys
from functools import cache, cached_property
from pathlib import Path

import attrs

from coldpress import registry
from coldpress.recipe.settings import documented
from coldpress.testing.subject import Subject

_TEST = re.compile(r"test_.*\.py|.*_test\.py")

# Runs in a process of its own; says what importing one module did, as JSON on the last line.
_PROBE = """
import json, os, random, sys
import torch
name, file, plugins = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
before = (dict(os.environ), random.getstate(), torch.get_rng_state().tolist(), torch.get_default_dtype(),
          torch.is_grad_enabled(), torch.get_num_threads())
sys.stdout.flush()
try:
    __import__(name)
except ModuleNotFoundError as error:
    if error.name != name:
        raise
    import importlib.util
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
after = (dict(os.environ), random.getstate(), torch.get_rng_state().tolist(), torch.get_default_dtype(),
         torch.is_grad_enabled(), torch.get_num_threads())
words = ("the environment", "Python's random numbers", "torch's random numbers", "torch's default dtype",
         "whether gradients are recorded", "torch's number of threads")
done = [f"changes {word}" for word, old, new in zip(words, before, after) if old != new]
done += ["starts CUDA"] * torch.cuda.is_initialized()
done += [f"imports the plugin {name}" for name in plugins if name in sys.modules]
print()
print(json.dumps(done))
"""


def settings_class(subject: Subject) -> None:
    """Settings are a frozen, keyword-only attrs class; each is documented; nothing works inside a property."""
    cls = subject.cls
    assert "__attrs_attrs__" in vars(cls), (
        f"decorate {cls.__name__} with @frozen(kw_only=True), else it has no settings"
    )
    problems = [f"{name} is annotated and is no setting" for name in _forgotten(cls)]
    fields = [field for field in attrs.fields(cls) if field.init]
    problems += [f"{field.name} is not keyword-only" for field in fields if not field.kw_only]
    known = documented(cls)
    problems += [f"{field.name} has no line under `Attributes:`" for field in fields if field.name not in known]
    problems += [f"{name} is a property: compute it in a method" for name in _properties(cls)]
    if subject.kind == "modifiers" and subject.name != cls.__name__:
        problems.append(f"recipes call it {subject.name}, so that must be the name of its class")
    if not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}("):
        problems.append("the class has no docstring")
    assert not problems, _listed(f"{cls.__name__} is not a settings class:", problems)
    assert _is_frozen(subject), f"{cls.__name__} is not frozen: use attrs.frozen, and keep what changes in the state"


def import_is_quiet(subject: Subject) -> None:
    """Importing it prints nothing, starts no CUDA, changes nothing around it and imports no other plugin."""
    name, file = subject.home()
    done = _import_report(name, file)
    assert not done, _listed(f"importing {name}", list(done))


def has_a_module(subject: Subject) -> bool:
    """Whether a plugin has a module that recipes import, and is not defined in a test or a notebook."""
    file = Path(subject.home()[1])
    return subject.installed or not (file.name == "" or file.name == "conftest.py" or _TEST.fullmatch(file.name))


def _forgotten(cls: type) -> list[str]:
    names = {field.name for field in attrs.fields(cls)}
    own = inspect.get_annotations(cls)
    return [name for name, kind in own.items() if name not in names and "ClassVar" not in str(kind)]


def _properties(cls: type) -> list[str]:
    kinds = (property, cached_property)
    parents = [parent for parent in cls.__mro__ if parent is not object]
    return [name for parent in parents for name, value in vars(parent).items() if isinstance(value, kinds)]


def _is_frozen(subject: Subject) -> bool:
    instance = subject.make(**_required(subject))
    name = next((field.name for field in attrs.fields(subject.cls)), "anything")
    try:
        setattr(instance, name, getattr(instance, name, None))
    except attrs.exceptions.FrozenInstanceError:
        return True
    return False


def _required(subject: Subject) -> dict[str, object]:
    """What an observer cannot be made without."""
    if subject.kind != "observers":
        return {}
    from coldpress.schemes import QuantizationArgs

    return {"args": QuantizationArgs()}


@cache
def _import_report(name: str, file: str) -> tuple[str, ...]:
    """What importing a module did beside defining things; one process per module, as starting one takes seconds."""
    own = name.partition(".")[0]
    modules = {plugin.entry.module for kind in registry.KINDS for plugin in registry.available(kind)}
    plugins = sorted({m.partition(".")[0] for m in modules} - {own, "coldpress"})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROBE, name, file, json.dumps(plugins)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        return ("fails:", run.stderr.strip())
    *printed, report = run.stdout.splitlines()
    noise = "\n".join([*printed, run.stderr]).strip()
    return (*json.loads(report), *([f"prints {noise[:200]!r}"] if noise else []))


def _listed(head: str, lines: list[str]) -> str:
    return "\n  ".join([head, *lines])
