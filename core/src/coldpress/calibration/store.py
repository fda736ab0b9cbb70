"""StatisticStore: who asked for which statistic of which layer, and what is known of every distinct input of a stage.

initialize    ask          a modifier names a layer and a statistic
the sweep     see          one update for each distinct input and statistic, however many layers and modifiers read it
finalize      value        layers that share an input share the value
              take         forgotten, once all layers have taken it that it was asked for
              carry        a modifier moved the signal: values follow, or are lost
              is_stale     whether the stage must be swept again before a modifier can read
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from coldpress.attention import AttentionInput
from coldpress.calibration.gradient_store import GradientStore
from coldpress.calibration.tap import BatchInputs
from coldpress.errors import BrokenPluginError, CalibrationError
from coldpress.modifier import Modifier
from coldpress.routed import Observed
from coldpress.stage import Layer
from coldpress.statistic import RESCALE, ROTATE, GradientStatistic, Statistic, Tokens, statistic_for

Calls = Mapping[str, tuple[int, ...]]
"""Layer name to the keys of the tensors that it was called with in one batch, in order."""


@frozen(eq=False)
class Request:
    """One request.

    Attributes:
        layer: whose inputs.
        statistic: of what kind.
        modifier: that requests it; None outside a run.
    """

    layer: Observed
    statistic: Statistic
    modifier: Modifier | None


@frozen(eq=False)
class Source:
    """One distinct input of the stage.

    Attributes:
        layers: names of the layers that read it.
        values: the statistics that are wanted of it, and what they say.
    """

    layers: tuple[str, ...]
    values: tuple[tuple[Statistic, Any], ...]

    def value(self, statistic: Statistic) -> Any | None:
        """What a statistic says; None when it is not held."""
        return next((value for held, value in self.values if held == statistic), None)

    def seeing(self, x: Tensor, original: Tensor, weight: Callable[[Statistic], Tensor | None]) -> "Source":
        """The source after some tokens, and what they are in the original model, [T, I] both.

        Args:
            x: the tokens.
            original: the same ones in the original model.
            weight: what each of them counts for a statistic, [T]; None where all count alike.
        """
        seen = []
        for one, value in self.values:
            counts = weight(one)
            if counts is not None:
                seen.append(one.update_weighted(value, flat(one, x), counts))
            elif one.needs_original_inputs:
                seen.append(one.update_with_original(value, flat(one, x), flat(one, original)))
            else:
                seen.append(one.update(value, flat(one, x)))
        return Source(self.layers, tuple((one, value) for (one, _), value in zip(self.values, seen, strict=True)))


@define(eq=False)
class StatisticStore:
    """The statistics of one stage.

    Attributes:
        requester: the modifier whose hook is running.
        followed: a transformation of inputs was told, since it was last set to False.
        gradients: what the reverse sweep has found, for statistics of gradients and those that weight tokens.
        decided: schemes were decided after a measuring pass, which ran data, so that a modifier may need some too.
    """

    gradients: GradientStore = field(factory=GradientStore)
    decided: bool = False
    requester: Modifier | None = None
    followed: bool = False
    _asks: dict[str, list[Request]] = field(factory=dict)  # by the name of the layer
    _wanted: list[Request] = field(factory=list)
    _sources: list[Source] = field(factory=list)
    _lost: list[Request] = field(factory=list)
    _moved: set[str] = field(factory=set)
    _taken: set[tuple[str, Statistic]] = field(factory=set)

    def request(self, layer: Observed, which: str | Statistic) -> None:
        """Request a statistic of the inputs of a layer or attention; requesting twice is requesting once.

        Raises:
            PluginError: no installed plugin has a statistic of this name.
            BrokenPluginError: the modifier does not say that it needs data, or that it compares.
            CalibrationError: the layer is an embedding.
        """
        needs = None if self.requester is None else self.requester.needs()
        if needs is not None and not needs.data and not self.decided:
            raise BrokenPluginError(
                f"{type(self.requester).__name__} requests statistics: its needs() must say data=True"
            )
        if isinstance(layer, Layer) and "Linear" not in layer.classes:
            raise CalibrationError(
                f"{layer.name} is called with token ids, of which there are no statistics: ignore it"
            )
        statistic = statistic_for(which)
        if isinstance(statistic, GradientStatistic):
            raise BrokenPluginError(
                f"{statistic!r} is not requested: needs() names it in loss_gradients, and it is there from the start"
            )
        weights = statistic.weighted_by()
        if weights is not None and needs is not None and weights not in needs.loss_gradients:
            raise BrokenPluginError(
                f"{type(self.requester).__name__} requests {statistic!r}: its needs() must name {weights!r} in "
                "loss_gradients"
            )
        if statistic.needs_original_inputs and needs is not None and not needs.original_inputs:
            raise BrokenPluginError(
                f"{type(self.requester).__name__} requests {statistic!r}, which sees inputs of the original model too: "
                "its needs() must say original_inputs=True"
            )
        asks = self._asks.setdefault(layer.name, [])
        if not any(ask.statistic == statistic and ask.modifier is self.requester for ask in asks):
            asks.append(Request(layer, statistic, self.requester))

    @contextmanager
    def requesting(self, modifier: Modifier) -> Iterator[None]:
        """Which modifier requests inside."""
        self.requester = modifier
        try:
            yield
        finally:
            self.requester = None

    def begin(self, modifiers: Sequence[Modifier]) -> list[Observed]:
        """Forget what was seen, and get ready to see what these modifiers asked for.

        Returns:
            The layers whose inputs are wanted, each once.
        """
        asks = chain.from_iterable(self._asks.values())
        self._wanted = [ask for ask in asks if any(ask.modifier is one for one in modifiers)]
        self._sources, self._lost, self._moved, self._taken = [], [], set(), set()
        return list({ask.layer.name: ask.layer for ask in self._wanted}.values())

    def see(self, seen: BatchInputs, originals: Mapping[str, Sequence[Tensor]] | None = None) -> None:
        """Take in one batch.

        Layers that read the same tensors in every batch so far are one source; once they part, each continues from what
        they had in common.

        Args:
            seen: what every layer that some token reached was called with.
            originals: layer name to what it is called with in the original model, [T, I], in the order of its calls;
                None where that is the same.

        Raises:
            CalibrationError: in the original model a layer sees other tokens.
        """
        parts = self._parted(seen)
        for index, source in enumerate(parts):
            keys = seen.calls.get(source.layers[0], ())
            inputs = [seen.tokens[key] for key in keys]
            for number, (x, original) in enumerate(zip(inputs, beside(source, inputs, originals), strict=True)):
                which = Tokens(seen.index, number, seen.places.get(keys[number]))
                weight = partial(self._weight, source.layers, x, which)
                parts[index] = parts[index].seeing(x, original, weight)
        self._sources = parts

    def seeing(
        self, found: Iterator[tuple[BatchInputs, BatchInputs | None]], shown: Collection[str]
    ) -> Iterator[BatchInputs]:
        """Take in batch after batch, and hand each on.

        Args:
            found: what was seen in each batch, and in the original model where the sweep shows that.
            shown: names of layers whose inputs are read of what is handed on.
        """
        for seen, original in found:
            self.see(seen, None if original is None else original.inputs())
            yield seen

    def _parted(self, seen: BatchInputs) -> list[Source]:
        """The sources, as far apart as they are after a batch, and those that are new in it."""
        calls = seen.calls
        known = {name for source in self._sources for name in source.layers}
        names = dict.fromkeys(ask.layer.name for ask in self._wanted)
        parts = [part for source in self._sources for part in self._split(source, _grouped(source.layers, calls))]
        fresh = _grouped([name for name in names if name not in known and calls.get(name)], calls)
        return parts + [self._fresh(group, seen) for group in fresh]

    def _fresh(self, names: tuple[str, ...], seen: BatchInputs) -> Source:
        """A source that nothing was seen of, of layers that were called with the same tensors."""
        return Source(names, tuple((one, None) for one in self._statistics(names)))

    def _weight(self, names: Sequence[str], x: Tensor, which: Tokens, statistic: Statistic) -> Tensor | None:
        """What each token counts for a statistic, [T]: by the gradients of the layers that asked for it."""
        by = statistic.weighted_by()
        if by is None:
            return None
        asked = {ask.layer.name for ask in self._wanted if ask.statistic == statistic}
        return self.gradients.weight([name for name in names if name in asked], by, x, which)

    def finish(self) -> None:
        """Bring every value into the form that is read."""
        for index, source in enumerate(self._sources):  # one by one: what is finished may be as large as before
            self._sources[index] = Source(source.layers, tuple((one, one.finish(was)) for one, was in source.values))

    def value(self, layer: Observed, which: str | Statistic) -> Any | None:
        """What was seen of the inputs of a layer; None when no token reached it.

        Raises:
            LookupError: it was not requested in `initialize`.
        """
        statistic = statistic_for(which)
        if isinstance(statistic, GradientStatistic):
            return self.gradients.value(layer.name, statistic)
        if not any(ask.statistic == statistic for ask in self._asks.get(layer.name, ())):
            raise LookupError(
                f"{which!r} of {layer.name} was not requested: call state.request(layer, ...) in initialize"
            )
        if any(ask.layer.name == layer.name and ask.statistic == statistic for ask in self._lost):
            raise LookupError(f"{which!r} of {layer.name} cannot follow a signal that moved: read it before moving")
        if (layer.name, statistic) in self._taken:
            raise LookupError(f"{which!r} of {layer.name} was taken: read it before, or do not take it")
        source = self._source(layer.name)
        return None if source is None else source.value(statistic)

    def take(self, names: Sequence[str], which: str | Statistic) -> None:
        """A statistic of these layers is not read again, but by other modifiers that asked for it."""
        statistic, source = statistic_for(which), self._source(names[0])
        asks = [
            ask for ask in self._wanted if ask.statistic == statistic and source and ask.layer.name in source.layers
        ]
        if source is None or len({id(ask.modifier) for ask in asks}) > 1:
            return
        self._taken |= {(name, statistic) for name in names}
        if all((ask.layer.name, statistic) in self._taken for ask in asks):
            left = tuple((one, value) for one, value in source.values if one != statistic)
            self._sources[self._sources.index(source)] = Source(source.layers, left)

    def input_groups(self, layers: Iterable[Layer]) -> list[list[Layer]]:
        """The layers in groups that read the same input, in order; a layer that nothing is known of is alone."""
        groups: dict[object, list[Layer]] = {}
        for layer in layers:
            source = self._source(layer.name)
            groups.setdefault(layer.name if source is None else id(source), []).append(layer)
        return list(groups.values())

    def rescale(self, layers: Sequence[Layer], scale: Tensor) -> None:
        """The inputs of these layers are divided by `scale`, [I], from now on.

        Raises:
            ValueError: the scale is not [I], not finite, or zero somewhere.
        """
        scale = _on_device(scale, layers, rank=1)
        if not bool((torch.isfinite(scale) & (scale != 0)).all()):
            raise ValueError("a scale must be finite and nowhere zero")
        self._carry(layers, RESCALE, scale)

    def rotate(self, layers: Sequence[Layer], rotation: Tensor) -> None:
        """The inputs of these layers are multiplied by `rotation`, [I, I], from the right, from now on.

        Raises:
            ValueError: the rotation is not [I, I].
        """
        self._carry(layers, ROTATE, _on_device(rotation, layers, rank=2))

    def forget(self, names: Collection[str]) -> None:
        """Nothing is known of the inputs of these layers, as if no token had reached them."""
        parts = [(source, tuple(name for name in source.layers if name not in names)) for source in self._sources]
        self._sources = [Source(left, source.values) for source, left in parts if left]

    def forget_attention(self, parameters: Iterable[str]) -> None:
        """The outputs of layers with these parameters are others: what attention around them is called with is lost."""
        changed = tuple(parameters)
        for ask in self._wanted:
            point = ask.layer
            if isinstance(point, AttentionInput) and any(name.startswith(f"{point.owner}.") for name in changed):
                self._lost.append(ask)

    def lose(self) -> None:
        """Inputs were transformed, and it was not told how."""
        self._lost = list(self._wanted)
        self._moved |= {ask.layer.name for ask in self._wanted}
        self._sources = []

    def lacks(self, modifier: Modifier) -> bool:
        """Whether something that this modifier asked for was lost."""
        return any(ask.modifier is modifier for ask in self._lost)

    def has_moved(self, names: Iterable[str]) -> bool:
        """Whether the inputs of any of these layers are no longer what they were in the sweep."""
        return not self._moved.isdisjoint(names)

    def clear(self) -> None:
        """Forget everything: the stage is done."""
        self._asks, self._wanted, self._sources, self._lost = {}, [], [], []
        self._moved, self._taken = set(), set()

    def _carry(self, layers: Sequence[Layer], how: str, by: Tensor) -> None:
        named = {layer.name for layer in layers}
        sources = []
        for source in self._sources:
            inside = tuple(name for name in source.layers if name in named)
            outside = tuple(name for name in source.layers if name not in named)
            for part in self._split(source, [group for group in (inside, outside) if group]):
                sources.append(self._moved_source(part, how, by) if part.layers == inside else part)
        self._sources = sources
        self._moved |= named
        self.followed = True

    def _moved_source(self, source: Source, how: str, by: Tensor) -> Source:
        lost = [one for one, _ in source.values if how not in one.supports]
        self._lost += [ask for ask in self._wanted if ask.layer.name in source.layers and ask.statistic in lost]
        kept = [(one, value) for one, value in source.values if how in one.supports]
        return Source(source.layers, tuple((one, getattr(one, how)(value, by)) for one, value in kept))

    def _source(self, name: str) -> Source | None:
        return next((source for source in self._sources if name in source.layers), None)

    def _split(self, source: Source, groups: Sequence[tuple[str, ...]]) -> list[Source]:
        """A source as one for each group, each with the statistics that its layers were asked for."""
        if len(groups) == 1:
            return [source]
        return [
            Source(group, tuple((one, value) for one, value in source.values if one in self._statistics(group)))
            for group in groups
        ]

    def _statistics(self, names: Sequence[str]) -> list[Statistic]:
        """What is wanted of these layers, each statistic once."""
        wanted: list[Statistic] = []
        for ask in self._wanted:
            if ask.layer.name in names and ask.statistic not in wanted:
                wanted.append(ask.statistic)
        return wanted


def beside(
    source: Source, seen: Sequence[Tensor], originals: Mapping[str, Sequence[Tensor]] | None
) -> Sequence[Tensor]:
    """What a source is in the original model, tensor by tensor."""
    if originals is None or not any(one.needs_original_inputs for one, _ in source.values):
        return seen
    found = originals.get(source.layers[0], ())
    if [len(x) for x in found] != [len(x) for x in seen]:
        raise CalibrationError(
            f"{source.layers[0]} sees other tokens than in the original model, so its inputs cannot be compared; "
            "calibrate all experts with all tokens, or compress this layer without comparing"
        )
    return found


def flat(statistic: Statistic, x: Tensor) -> Tensor:
    """The tokens, [T, I] or [T, H, D], with heads side by side where the statistic does not see them apart."""
    return x if statistic.sees_heads else x.flatten(1)


def _grouped(names: Sequence[str], calls: Calls) -> list[tuple[str, ...]]:
    """Names in groups that were called with the same tensors; one group of all that were not called."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        groups.setdefault(calls.get(name, ()), []).append(name)
    return [tuple(group) for group in groups.values()]


def _on_device(by: Tensor, layers: Sequence[Layer], *, rank: int) -> Tensor:
    """A scale or rotation in float32 where the inputs of the layers are, after a look at its shape."""
    for layer in layers:
        width = layer.weight.shape[1]
        if by.shape != (width,) * rank:
            raise ValueError(f"{layer.name} has inputs of width {width}; {tuple(by.shape)} does not fit")
    return by.detach().to(layers[0].weight.device if layers else by.device, torch.float32)
