"""Subject: the plugin that is checked, wherever it comes from."""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from attrs import frozen

from coldpress import registry
from coldpress.errors import BrokenPluginError, UnknownPluginError
from coldpress.spelling import suggest

KINDS = ("modifiers", "observers", "pipelines", "formats", "sources", "statistics", "attachments")

# Where the class that every plugin of a kind extends is defined.
_PARENTS = {
    "modifiers": ("coldpress.modifier", "Modifier"),
    "observers": ("coldpress.calibration.observer", "Observer"),
    "pipelines": ("coldpress.pipeline", "Pipeline"),
    "formats": ("coldpress.checkpoint", "Format"),
    "sources": ("coldpress.source", "Source"),
    "statistics": ("coldpress.statistic", "Statistic"),
    "attachments": ("coldpress.attachment", "Attachment"),
}


@frozen(eq=False)
class Subject:
    """A plugin and the settings that it is checked with.

    Attributes:
        kind: one of `KINDS`.
        name: what recipes call it; the class's name when it is not installed.
        cls: the class.
        settings: what it is made with.
        installed: whether the registry knows it by its name.
        pipeline: that a modifier is run in, by its name; None for the kit's own, or what the modifier needs.
        mixture: the type of the tiny mixture of experts that a modifier is run on; None for a tiny Llama.
    """

    kind: str
    name: str
    cls: Any
    settings: Mapping[str, Any]
    installed: bool
    pipeline: str | None = None
    mixture: str | None = None

    def build(self, *, fused: bool = False, **more: Any) -> Any:
        """The tiny model that it is run on.

        Args:
            fused: leave experts as transformers has them, not as the linear layers that a run makes of them first.
            more: `dtype`, and for a Llama what else `tiny_llama` takes.
        """
        if self.mixture is None:
            from coldpress.testing.models import tiny_llama  # which loads torch

            return tiny_llama(**more)
        from coldpress.experts import linearize_experts
        from coldpress.testing.mixtures import tiny_mixture

        model = tiny_mixture(self.mixture, **{name: more[name] for name in more.keys() & {"dtype"}})
        if not fused:
            linearize_experts(model)
        return model

    def make(self, **more: Any) -> Any:
        """An instance, read as strictly as from a recipe; `more` wins over the settings."""
        from coldpress.recipe import structure_settings

        own = {name: value for name, value in self.settings.items() if (self.kind, name) != ("attachments", "tensors")}
        return structure_settings(self.cls, {**own, **more}, where=self.name)

    def find(self, kind: str, name: str) -> Any:
        """Look up a plugin as the registry does, but know this one even if it is not installed."""
        return self.cls if (kind, name) == (self.kind, self.name) else registry.find(kind, name)

    def home(self) -> tuple[str, str]:
        """What is imported when a recipe names it, and the file: a package whole, a class by its own module."""
        module: str = self.cls.__module__
        name = module.partition(".")[0] if self.installed else module
        return name, str(getattr(sys.modules.get(name), "__file__", ""))


def subject_of(
    plugin: str | type,
    *,
    kind: str | None,
    settings: Mapping[str, Any],
    pipeline: str | None = None,
    mixture: str | None = None,
) -> Subject:
    """Find a plugin by name, or take a class as it is.

    Raises:
        UnknownPluginError: no installed plugin has the name.
        BrokenPluginError: it cannot be imported, or is not a class of its kind.
        ValueError: the kind is not known, or has no kit; a pipeline is named for something else than a modifier.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"there is no kit for the kind {kind!r}{suggest(kind, KINDS)} (there are: {', '.join(KINDS)})")
    if isinstance(plugin, str):
        kind = kind or _kind_of_name(plugin)
        cls, name, installed = registry.find(kind, plugin), plugin, True
    else:
        kind = kind or _kind_of_class(plugin)
        cls, name, installed = plugin, plugin.__name__, False
    parent = _parent(kind)
    if not (isinstance(cls, type) and issubclass(cls, parent)):
        raise BrokenPluginError(f"the plugin {name!r} is not a class that extends coldpress.{parent.__name__}")
    if pipeline is not None:
        if kind != "modifiers":
            raise ValueError(f"pipeline={pipeline!r} is for modifiers; {name} is one of the {kind}")
        registry.find("pipelines", pipeline)
    return Subject(kind, name, cls, dict(settings), installed, pipeline, mixture)


def _kind_of_name(name: str) -> str:
    offers = {kind: [plugin.name for plugin in registry.available(kind)] for kind in KINDS}
    kinds = [kind for kind, names in offers.items() if name in names]
    if len(kinds) > 1:
        raise ValueError(f"{name!r} is the name of {' and '.join(kinds)}: say which with kind=...")
    if not kinds:
        known = [offer for names in offers.values() for offer in names]
        raise UnknownPluginError(
            f"no installed plugin is called {name!r}{suggest(name, known)} (installed: {', '.join(known) or 'none'}); "
            "a new entry point is seen after `pip install -e .`"
        )
    return kinds[0]


def _kind_of_class(cls: type) -> str:
    for kind in KINDS:
        if issubclass(cls, _parent(kind)):
            return kind
    raise BrokenPluginError(f"{cls.__name__} extends none of the classes that plugins extend")


def _parent(kind: str) -> type:
    module, name = _PARENTS[kind]
    parent: type = getattr(import_module(module), name)
    return parent
