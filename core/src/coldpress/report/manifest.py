"""manifest.json: what a checkpoint was made of, with what, on what, and how long it took."""

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from coldpress import registry
from coldpress.report.report import Report
from coldpress.state import State

NAME = "manifest.json"
_LIBRARIES = ("coldpress", "torch", "transformers", "safetensors")
_CPU_INFO = Path("/proc/cpuinfo")


def manifest_of(state: State, report: Report, *, binding: Mapping[str, Any], parts: Sequence[object]) -> dict[str, Any]:
    """The content of `manifest.json`.

    Args:
        state: of the finished run.
        report: of the finished run.
        binding: what the run worked on, by text or hash (see `checkpoint.binding`).
        parts: modifiers, pipeline and format, whose distributions are named.
    """
    elsewhere = ("recipe", "torch", "transformers")
    facts = {key: value for key, value in binding.items() if not key.startswith("_") and key not in elsewhere}
    return {
        "source": getattr(getattr(state.model, "config", None), "_name_or_path", None) or None,
        "recipe": report.recipe,
        "seed": state.seed,
        **{key: value for key, value in facts.items() if key not in ("seed", "coldpress")},
        "versions": {"python": platform.python_version(), **_versions(parts)},
        "hardware": _hardware(state.share.ranks.size),
        "seconds": round(report.seconds, 3),
        "stages": [dict(entry) for entry in report.log],
    }


def _versions(parts: Sequence[object]) -> dict[str, str]:
    """Ours, those of the libraries that a result depends on, and those of the plugins that took part."""
    homes = {type(part).__module__.partition(".")[0] for part in parts}
    plugins = _plugins_in(homes, registry.remembered)
    if homes - {package for package, _, _ in plugins} - {"coldpress"}:  # it may have been installed since
        plugins = _plugins_in(homes, registry.available)
    return {**_installed(_LIBRARIES), **{name: number for _, name, number in sorted(plugins, key=itemgetter(1))}}


def _plugins_in(homes: set[str], read: Callable[[str], Iterable[registry.Plugin]]) -> set[tuple[str, str, str]]:
    """Package, distribution and version of the plugins that are in some packages."""
    every = (plugin for kind in registry.KINDS for plugin in read(kind) if plugin.distribution)
    found = {(plugin.entry.module.partition(".")[0], plugin.distribution, plugin.version) for plugin in every}
    return {one for one in found if one[0] in homes}


def _installed(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware(ranks: int) -> dict[str, Any]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "accelerator": None if accelerator is None else str(accelerator),
    }


def _processor() -> str:
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
