"""`coldpress plugins NAME`: what one plugin is for, needs and takes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attrs import asdict

from coldpress.cli.console import out, print_json

if TYPE_CHECKING:
    from coldpress.registry import Plugin

_NEEDS = {
    "data": "calibration data",
    "propagated_error": "activations from the compressed preceding blocks",
    "original_inputs": "inputs in the original model (asymmetric calibration)",
    "original_weights": "weights before compression",
    "calls": "calls of whole blocks",
    "gradients": "gradients inside of a block",
    "loss_gradients": "gradients of the loss",
    "whole_stage": "whole blocks",
    "batch_boundaries": "batches of one sample unless batch_size is set",
    "measuring_pass": "a measuring pass before the first block is compressed",
    "training": "training",
    "measures_only": "data in the measuring pass only",
}
"""`Needs` in words."""


def show(name: str, *, as_json: bool) -> None:
    """Print what the plugins of a name are and take.

    Raises:
        UnknownPluginError: no kind has one of this name.
    """
    found = [_described(plugin) for plugin in _called(name)]
    if as_json:
        print_json("plugin", {"plugins": found})
        return
    for number, one in enumerate(found):
        _print(one, first=number == 0)


def _called(name: str) -> "list[Plugin]":
    """The plugins of this name, whatever their kind and the case of its letters."""
    from coldpress.errors import UnknownPluginError
    from coldpress.registry import KINDS, available
    from coldpress.spelling import suggest

    every = [plugin for kind in KINDS for plugin in available(kind)]
    found = [one for one in every if one.name == name] or [one for one in every if one.name.lower() == name.lower()]
    if not found:
        hint = suggest(name, sorted({one.name for one in every}))
        raise UnknownPluginError(f"no installed plugin is called {name!r}{hint}: `coldpress plugins` lists them")
    return found


def _described(plugin: "Plugin") -> dict[str, Any]:
    from coldpress.recipe.settings import settings_of, summary

    value = plugin.load()
    is_class = isinstance(value, type)
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "summary": summary(value) if is_class else "",
        **(_of_modifier(value) if plugin.kind == "modifiers" and is_class else {}),
        "settings": [asdict(one) for one in settings_of(value)] if is_class else [],
        **({} if is_class else {"value": repr(value)}),
    }


def _of_modifier(cls: type[Any]) -> dict[str, Any]:
    """Its traits, and what it needs with the default settings; null where these do not make one."""
    try:
        needs = asdict(cls().needs(), recurse=False)
    except Exception:  # a setting without which there is none
        needs = None
    words = None if needs is None else [text for key, text in _NEEDS.items() if needs.get(key)]
    return {"traits": sorted(cls.traits), "needs": words}


def _print(one: dict[str, Any], *, first: bool) -> None:
    from rich.text import Text

    from coldpress.report.table import facts

    head = "" if first else "\n"
    out().print(Text(f"{head}{one['name']}", style="bold"), Text(one["summary"]), sep="\n", soft_wrap=True)
    out().print(facts(_facts(one)))
    for setting in one["settings"]:
        default = "required" if setting["default"] is None else f"default {setting['default']}"
        line = Text.assemble((f"\n{setting['name']}", "cyan"), f": {setting['type']}, {default}")
        out().print(line, Text(f"    {setting['meaning']}"), sep="\n", soft_wrap=True)


def _facts(one: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "kind", one["kind"]
    yield "distribution", f"{one['distribution']} {one['version']}".strip()
    if one.get("traits"):
        yield "traits", ", ".join(one["traits"])
    if one.get("needs") is not None:
        yield "needs", ", ".join(one["needs"]) or "nothing"
    if "value" in one:
        yield "value", one["value"]
