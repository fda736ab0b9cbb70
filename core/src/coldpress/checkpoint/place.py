"""Where the tensors of a model are in files of any names: as they are, made of others, or part of a joint one.

    memory    model.language_model.layers.0.self_attn.q_proj.weight
    files     model.layers.0.self_attn.q_proj.weight                     Plain: another name
              encoder.layers.0.attn.Wqkv.weight                          Made: cut out of it by transformers' rule
              model.layers.0.mlp.experts.gate_up_proj                    Joint: one expert's rows of it

The rules are those by which transformers renames and converts what it loads; they are applied to names and to
tensors without data, so that nothing is read before it is needed.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from coldpress.checkpoint.named import Part, expert_parts
from coldpress.checkpoint.names import checkpoint_names
from coldpress.errors import CheckpointError
from coldpress.experts import Rows, linear_experts
from coldpress.experts.linear import LinearExperts
from coldpress.source import Weights

_TROUBLE = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError)


@frozen
class Plain:
    """A tensor that is in the files as it is in memory.

    Attributes:
        tensor: its name in the files.
    """

    tensor: str


@frozen(eq=False)
class Outline:
    """What a rule may ask of the model that it makes tensors for, as the model was before its experts were split.

    Attributes:
        config: of the model.
        shapes: of its tensors, by name.
    """

    config: Any
    shapes: Mapping[str, tuple[int, ...]]

    def get_parameter(self, name: str) -> Tensor:
        """A tensor without data that has the shape of this one; the name is transformers'."""
        return torch.empty(self.shapes[name], device="meta")


@frozen(eq=False)
class Conversion:
    """Tensors of the files of which a rule makes others.

    Attributes:
        first: name in memory of the first tensor that is made.
        rule: transformers' converter, never used itself: each conversion takes a copy.
        sources: pattern of the rule to the tensors in the files that it matches.
        model: the configuration and the shapes that some rules ask for.
    """

    first: str
    rule: Any
    sources: dict[str, list[str]]
    model: "Outline"

    def make(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that are made, by their names in memory.

        Args:
            tensors: of the files, by name; those on the meta device show the shapes of what would be made.
        """
        rule = deepcopy(self.rule)
        for pattern, names in self.sources.items():
            for name in names:
                rule.add_tensor(self.first, name, pattern, tensors[name])
        made = rule.convert(self.first, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@frozen(eq=False)
class Made:
    """A tensor that is made of others.

    Attributes:
        conversion: of what, and how.
        target: its name among those that are made.
        shape: of what is made.
    """

    conversion: Conversion
    target: str
    shape: tuple[int, ...]


@frozen(eq=False)
class Joint:
    """An expert's tensor that is part of a joint one.

    Attributes:
        whole: where the joint one is.
        part: which part of it.
    """

    whole: "Plain | Made"
    part: Part


@frozen(eq=False)
class Picked:
    """Some entries of a tensor, after experts were dropped.

    Attributes:
        whole: where all of it is.
        rows: which entries.
    """

    whole: "Place"
    rows: Rows


Place = Plain | Made | Joint | Picked


@define(eq=False)
class PlaceReader:
    """Reads tensors from their places; what several are made of is read once, until it is told to forget.

    Attributes:
        files: that are read.
    """

    files: Weights
    _made: dict[int, dict[str, Tensor]] = field(factory=dict)

    def read(self, place: Place, dtype: torch.dtype) -> Tensor:
        """The tensor at a place; floating numbers that a rule computes with are cast to `dtype` before.

        Raises:
            CheckpointError: a file has become unreadable.
        """
        if isinstance(place, Plain):
            return self.files.read(place.tensor)
        if isinstance(place, Picked):
            return place.rows.of(self.read(place.whole, dtype))
        if isinstance(place, Made):
            return self._converted(place, dtype)
        if isinstance(place.whole, Made):
            return place.part.of(self._converted(place.whole, dtype))
        return place.part.of(self.files.get(place.whole.tensor))

    def shape(self, place: Place) -> tuple[int, ...]:
        """The shape of what is at a place; no data are read."""
        if isinstance(place, Plain):
            return self.files.shape(place.tensor)
        if isinstance(place, Made):
            return place.shape
        if isinstance(place, Picked):
            return tuple(place.rows.of(torch.empty(self.shape(place.whole), device="meta")).shape)
        return tuple(place.part.of(torch.empty(self.shape(place.whole), device="meta")).shape)

    def forget(self) -> None:
        """Free what was kept for tensors that are made of the same."""
        self._made.clear()

    def _converted(self, place: Made, dtype: torch.dtype) -> Tensor:
        conversion = place.conversion
        if id(conversion) not in self._made:
            found = {name: self.files.get(name) for names in conversion.sources.values() for name in names}
            cast = {name: x.to(dtype) if x.is_floating_point() else x for name, x in found.items()}
            self._made[id(conversion)] = conversion.make(cast)
        return self._made[id(conversion)][place.target].clone()


@frozen(eq=False)
class Found:
    """What the files of a model hold.

    Attributes:
        places: name of a parameter or saved buffer to where it is.
        extra: tensors of the files that the model has no place for.
    """

    places: Mapping[str, Place]
    extra: tuple[str, ...]


def find_places(model: Any, files: Weights) -> Found:
    """Where the tensors of a model are, but for those of experts that are linear layers.

    Transformers' rules that were of use are noted on the model, as transformers does, so that it is saved with the
    names that it had.

    Args:
        model: may be on the meta device.
        files: of its checkpoint.

    Raises:
        CheckpointError: a rule cannot make of the files' tensors what it should.
    """
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

    rules = loading_rules(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    known = dict(model.state_dict(keep_vars=True))
    outline = Outline(getattr(model, "config", None), {name: tuple(tensor.shape) for name, tensor in known.items()})
    places: dict[str, Place] = {}
    conversions: dict[str, Conversion] = {}
    extra = []
    experts = {f"{name}.{part}" for name, module in linear_experts(model).items() for part in module.shapes}
    own = set(checkpoint_names(model).renamed.values()) if experts else set()
    for disk in sorted(files.names(), key=dot_natural_key):
        name, pattern = _renamed(disk, renamings, converters, model, known)
        if name in experts or disk in own:
            continue  # they are linear layers already
        if name not in known or (pattern is None and name in places):
            extra.append(disk)
        elif pattern is None:
            places[name] = Plain(disk)
        else:
            kind = Conversion(name, by_pattern[pattern], {}, outline)
            conversions.setdefault(name, kind).sources.setdefault(pattern, []).append(disk)
    for conversion in conversions.values():
        places |= _made_by(conversion, files, known)
    if rules:
        model._weight_conversions = [rule for rule in rules if rule.was_used()]
    return Found(places, tuple(extra))


def loading_rules(model: Any) -> list[Any]:
    """The rules by which transformers loads into a model; none for modules of another origin."""
    if getattr(model, "config", None) is None or not hasattr(model, "base_model_prefix"):
        return []
    from transformers.conversion_mapping import get_model_conversion_mapping

    rules: list[Any] = get_model_conversion_mapping(model)
    return rules


def expert_places(model: nn.Module, fused: Mapping[str, Place], files: Weights) -> dict[str, Place]:
    """The places of the tensors of a model whose experts have become linear layers since `find_places`.

    Args:
        model: as it is now.
        fused: places of the model as its class makes it.
        files: of its checkpoint.
    """
    names, known = checkpoint_names(model), set(files.names())
    taken = {f"{name}.{part}" for name, module in linear_experts(model).items() for part in module.shapes}
    places = {name: place for name, place in fused.items() if name not in taken}
    for name, module in model.named_modules():
        if not isinstance(module, LinearExperts):
            continue
        for part, where in expert_parts(name, module).items():
            disk = names.on_disk(part)
            joint = fused.get(where.tensor)
            if disk in known:
                places[part] = Plain(disk)
            elif isinstance(joint, Plain | Made):
                places[part] = Joint(joint, where)
    return places


def _renamed(
    disk: str, renamings: list[Any], converters: list[Any], model: Any, known: Mapping[str, Tensor]
) -> tuple[str, str | None]:
    """The name in memory of a tensor of the files, and the pattern of the converter that takes it, if one does."""
    if not hasattr(model, "base_model_prefix"):
        return disk, None
    from transformers.core_model_loading import rename_source_key

    prefix = model.base_model_prefix
    name, pattern = rename_source_key(disk, renamings, converters, prefix, known)
    if name not in known and disk in known:
        name, pattern = rename_source_key(disk, [], [], base_model_prefix=prefix, meta_state_dict=known)
    return name, pattern


def _made_by(conversion: Conversion, files: Weights, known: Mapping[str, Tensor]) -> dict[str, Place]:
    """Name in memory to place, of all that a conversion makes."""
    sources = [name for names in conversion.sources.values() for name in names]
    try:
        empty = {name: torch.empty(files.shape(name), dtype=files.dtype(name), device="meta") for name in sources}
        made = conversion.make(empty)
    except _TROUBLE as error:
        raise CheckpointError(
            f"transformers cannot make {conversion.first!r} of {len(sources)} tensors of the checkpoint, the first is "
            f"{sources[0]!r}: {error}"
        ) from error
    return {name: Made(conversion, name, tuple(tensor.shape)) for name, tensor in made.items() if name in known}
