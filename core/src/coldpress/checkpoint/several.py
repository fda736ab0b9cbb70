"""several: a run whose codes are written in more than one format, each as a checkpoint in a folder of its own.

    format: [compressed-tensors, gguf]      <output>/compressed-tensors/   <output>/gguf/   <output>/report.json, ...

While the run goes on, the tensors of all formats lie in the files of its stages, with the format before the suffix:
`model.layers.0.mlp.up_proj.gguf:blocks`.  What is not quantized is there once.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen
from torch import Tensor

from coldpress import registry
from coldpress.attachment import Attached
from coldpress.checkpoint.companion import CONFIG
from coldpress.checkpoint.parts import StageParts
from coldpress.errors import BrokenPluginError, CheckpointError, ModelError, SchemeError
from coldpress.experts import linear_experts
from coldpress.format import AttachmentLookup, Format, Parts, SchemeLookup
from coldpress.quantized import Quantized
from coldpress.recipe import SEVERAL, structure_settings
from coldpress.schemes import Scheme, preset
from coldpress.state import State

_MARK = ":"  # between a format and a suffix
_ABOVE = ("recipe.yaml", "report.html", "report.json")  # what stays in the output itself, beside the manifest


def _to_pairs(value: Any) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Names of formats, alone or with their settings: `[gptq, {gguf: {split_max_size: 4000000000}}]`."""
    pairs = []
    for one in [value] if isinstance(value, str | Mapping) else value:
        found = {one: {}} if isinstance(one, str) else one
        if not isinstance(found, Mapping):
            raise ValueError(f"formats are names, alone or with their settings; got {one!r}")
        pairs += [(str(name), dict(settings or {})) for name, settings in found.items()]
    return tuple(pairs)


@frozen(kw_only=True, slots=False)
class SeveralFormats(Format):
    """More than one format, from one run.

    Attributes:
        formats: their names, alone or with their settings.
    """

    formats: Any = field(converter=_to_pairs)

    @formats.validator
    def _check_formats(self, attribute: object, value: tuple[tuple[str, dict[str, Any]], ...]) -> None:
        names = [name for name, _ in value]
        if len(set(names)) < len(names) or not names or SEVERAL in names:
            raise ValueError(
                f"formats must be different ones, at least one, and not {SEVERAL!r}; got {', '.join(names)}"
            )

    @cached_property
    def forms(self) -> dict[str, Format]:
        """Name to format.

        Raises:
            PluginError: one is not installed, or cannot be used.
        """
        found = {}
        for name, settings in self.formats:
            form = structure_settings(registry.find("formats", name), settings, where=f"format {name}")
            if not isinstance(form, Format):
                raise BrokenPluginError(f"the format {name!r} is not a coldpress.Format")
            found[name] = form
        return found

    @property
    def first(self) -> str:
        """The format that is read back while a run goes on."""
        return next(iter(self.forms))

    @property
    def fuses_layers(self) -> bool:  # type: ignore[override]
        """Whether a reader of one of them does."""
        return any(form.fuses_layers for form in self.forms.values())

    def complete(self, schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Scheme]:
        """What each format decides, of schemes that the ones before have completed.

        Raises:
            SchemeError: two of them decide otherwise.
        """
        found = dict(schemes)
        for _ in range(2):  # a later one may decide what an earlier one builds upon
            for name, form in self.forms.items():
                done = form.complete({layer: _own(scheme, name) for layer, scheme in found.items()}, shapes)
                found = {layer: _with_format(done[layer], scheme, name) for layer, scheme in found.items()}
        return found

    def check(self, scheme: Scheme, name: str, shape: tuple[int, int]) -> None:
        """Refuse what one of them cannot write."""
        for own, form in self.forms.items():
            form.check(_own(scheme, own), name, shape)

    def check_model(self, state: State, names: Sequence[str]) -> None:
        """Refuse what one of them has no place for."""
        for own, form in self.forms.items():
            if form.config({"x": preset("W8A16")}, []) is None and linear_experts(state.model):
                raise ModelError(f"{own} joins experts, which other formats keep apart: write it in a run of its own")
            form.check_model(state, names)

    def check_attachment(self, attached: Attached) -> None:
        """Refuse what one of them cannot tell."""
        for form in self.forms.values():
            form.check_attachment(attached)

    def tensors(self, quantized: Quantized) -> dict[str, Tensor]:
        """The tensors of all formats."""
        return {
            f"{name}{_MARK}{suffix}": tensor
            for name, form in self.forms.items()
            for suffix, tensor in form.tensors(evolve(quantized, scheme=_own(quantized.scheme, name))).items()
        }

    def config(
        self, schemes: Mapping[str, Scheme], ignore: Sequence[str], attachments: Sequence[Attached] = ()
    ) -> dict[str, Any] | None:
        """The configuration of each."""
        more, found = (attachments,) if attachments else (), {}
        for name, form in self.forms.items():
            own = {layer: _own(scheme, name) for layer, scheme in schemes.items()}
            found[name] = form.config(own, ignore, *more)
        return {"quant_method": SEVERAL, "formats": found}

    def config_for(
        self, config: dict[str, Any], model: Callable[[], Any], schemes: Mapping[str, Scheme]
    ) -> dict[str, Any]:
        """The configuration of each, for a model of this class."""
        found = dict(config["formats"])
        for name, form in self.forms.items():
            if found[name] is not None:
                own = {layer: _own(scheme, name) for layer, scheme in schemes.items()}
                found[name] = form.config_for(found[name], model, own)
        return {**config, "formats": found}

    def read(self, config: Mapping[str, Any]) -> SchemeLookup:
        """What the first says of a layer."""
        return self.forms[self.first].read(config["formats"][self.first])

    def attachments(self, config: Mapping[str, Any]) -> AttachmentLookup:
        """What the first says of a module."""
        return self.forms[self.first].attachments(config["formats"][self.first] or {})

    def restore(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Quantized:
        """A layer from the tensors of the first."""
        prefix = f"{self.first}{_MARK}"
        own = {suffix.removeprefix(prefix): x for suffix, x in tensors.items() if suffix.startswith(prefix)}
        if not own:
            raise CheckpointError(f"a quantized layer has no tensors of {self.first}")
        return evolve(self.forms[self.first].restore(own, _own(scheme, self.first)), scheme=scheme)

    def publish(self, parts: Parts, folder: Path, state: State) -> None:
        """A folder for each format, with its configuration and all small files."""
        assert isinstance(parts, StageParts)
        small = [path for path in folder.iterdir() if path.is_file()]
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        configs = saved.pop("quantization_config")["formats"]
        for name, form in self.forms.items():
            home = folder / name
            home.mkdir()
            for path in small:
                shutil.copyfile(path, home / path.name)
            own = saved if configs[name] is None else {**saved, "quantization_config": configs[name]}
            (home / CONFIG).write_text(json.dumps(own, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            form.publish(parts.selected(_names_of(name, parts)), home, state)
        for path in small:
            if path.name not in _ABOVE:
                path.unlink()


def _names_of(form: str, parts: Parts) -> dict[str, str]:
    """What the tensors of a format are called in its checkpoint, to what they are called in the run."""
    found = {}
    for name in parts.names():
        owner, _, suffix = name.rpartition(".")
        home, mark, own = suffix.partition(_MARK)
        if not mark:
            found[name] = name
        elif home == form:
            found[f"{owner}.{own}"] = name
    return found


def _own(scheme: Scheme, name: str) -> Scheme:
    """The scheme with what one format has said of the form of the layer."""
    formats = scheme.format
    if formats is None or "=" not in formats:
        return scheme
    found = dict(one.split("=", 1) for one in formats.split(","))
    return evolve(scheme, format=found.get(name) or None)


def _with_format(done: Scheme, before: Scheme, name: str) -> Scheme:
    """The scheme as one format completed it, with what it and the others have said of the form."""
    weights = before.weights
    if weights is not None and done.weights is not None and weights.scale_dtype not in (None, done.weights.scale_dtype):
        raise SchemeError(f"{name} keeps scales as {done.weights.scale_dtype}, another format as {weights.scale_dtype}")
    formats = {}
    if before.format is not None and "=" in before.format:
        formats = dict(one.split("=", 1) for one in before.format.split(","))
    formats[name] = done.format or ""
    return evolve(done, format=",".join(f"{key}={value}" for key, value in formats.items()))
