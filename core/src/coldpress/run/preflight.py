"""What is looked at before the first stage, so that a run that cannot end well does not begin."""

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import nn

from coldpress import registry
from coldpress.calibration.collate import count_tokens
from coldpress.dataflow.fused import fused_layers
from coldpress.errors import CalibrationError, ModelError, SchemeError, TargetError, near
from coldpress.modifier import QUANTIZES, READS_DATA, RUNS_LAST, Modifier
from coldpress.numerics import check_finite
from coldpress.pipeline import Pipeline
from coldpress.schemes import Scheme, check_fit, check_supported
from coldpress.stage import Layer, Stage, find_layers
from coldpress.state import State


@frozen(eq=False)
class Claim:
    """A modifier and the layers of the model that it will change.

    Attributes:
        modifier: who.
        layers: which, in model order; never empty.
    """

    modifier: Modifier
    layers: tuple[Layer, ...]


def claims_of(modifiers: Sequence[Modifier], model: nn.Module) -> list[Claim]:
    """Who claims which layers.

    Where a scheme has global scales, it is also found out which layers have one in common, while the model may be run.

    Raises:
        TargetError: a target matches nothing, all that a modifier targets is ignored, or a modifier that must come
            last does not; every such case is listed.
    """
    layers = list(find_layers(model.named_modules()))
    whole = Stage("model", 0, dict(model.named_modules()))
    known = [layer.name for layer in layers] + sorted({type(layer.module).__name__ for layer in layers})
    claims, problems = [], []
    for modifier in modifiers:
        name = type(modifier).__name__
        claimed = modifier.layers(whole)
        missed = [p for p in modifier.patterns() if not any(layer.matches([p]) for layer in layers)]
        problems += [f"{name}: the target {p!r} matches no layer{_examples(p, known)}" for p in missed]
        if not claimed and not missed:
            problems.append(f"{name}: every layer that its targets match is ignored, so it would do nothing")
        claims.append(Claim(modifier, tuple(claimed)))
    problems += _too_early(claims)
    if problems:
        raise TargetError("\n".join(problems))
    found = [claim.modifier.scheme_for(layer) for claim in claims for layer in claim.layers]
    if any(scheme and scheme.weights and scheme.weights.strategy == "tensor_group" for scheme in found):
        fused_layers(model)
    return claims


def within(claims: Sequence[Claim], stage: Stage) -> list[Claim]:
    """The part of each claim that lies in a stage."""
    inside = {layer.name for layer in stage.every_layer}
    parts = [(claim.modifier, tuple(layer for layer in claim.layers if layer.name in inside)) for claim in claims]
    return [Claim(modifier, layers) for modifier, layers in parts if layers]


def observed(claims: Sequence[Claim]) -> frozenset[str]:
    """Names of the layers whose inputs somebody reads."""
    return frozenset(layer.name for claim in claims if claim.modifier.needs_data() for layer in claim.layers)


def schemes_of(claims: Sequence[Claim]) -> dict[str, Scheme]:
    """Layer name to the scheme that it will be quantized with, of every layer that will be.

    Raises:
        SchemeError: a scheme does not fit its layer or cannot be quantized yet, or two modifiers quantize one layer.
    """
    schemes: dict[str, Scheme] = {}
    owners: dict[str, str] = {}
    problems = []
    for claim in claims:
        owner = type(claim.modifier).__name__
        for layer in claim.layers:
            scheme = claim.modifier.scheme_for(layer)
            if scheme is None:
                continue
            if layer.name in owners:
                problems.append(
                    f"{layer.name}: quantized by {owners[layer.name]} and {owner}; let one of them ignore it"
                )
            owners[layer.name], schemes[layer.name] = owner, scheme
            try:
                check_supported(scheme)
                check_fit(scheme, (layer.weight.shape[0], layer.weight.shape[1]))
            except SchemeError as error:
                problems.append(f"{layer.name}: {error}")
    if problems:
        raise SchemeError(shortened(problems))
    return schemes


def quantizers_of(claims: Sequence[Claim]) -> dict[str, Modifier]:
    """Layer name to who will quantize it, of every layer that will be."""
    return {
        layer.name: claim.modifier for claim in claims for layer in claim.layers if claim.modifier.scheme_for(layer)
    }


def averages_batches(modifiers: Sequence[Modifier], model: nn.Module) -> bool:
    """Whether the outcome depends on what a batch is, as the field's averages of ranges do.

    So it is where inputs have static scales, and where a modifier that quantizes needs data for other scales only.
    """
    if any(QUANTIZES in one.traits and READS_DATA not in one.traits and one.needs_data() for one in modifiers):
        return True
    whole = Stage("model", 0, dict(model.named_modules()))
    found = [modifier.scheme_for(layer) for modifier in modifiers for layer in modifier.layers(whole)]
    inputs = [scheme.input_activations for scheme in found if scheme is not None]
    return any(args is not None and args.dynamic is not True for args in inputs)


def check_data(modifiers: Sequence[Modifier], pipeline: Pipeline, state: State) -> None:
    """Refuse a recipe that reads data when there are none, when a batch is empty, or when its pipeline runs none.

    Raises:
        CalibrationError: says which modifier needs them and how to pass some, or which batch is empty.
    """
    needy = ", ".join(type(modifier).__name__ for modifier in modifiers if modifier.needs_data())
    if needy and not state.batches:
        raise CalibrationError(f"{needy} needs calibration data: pass dataset=... (on the command line: --dataset)")
    if needy and not pipeline.runs_batches:
        raise CalibrationError(
            f"{needy} needs calibration data, and the pipeline {type(pipeline).__name__} runs none; choose another"
        )
    comparing = ", ".join(type(modifier).__name__ for modifier in modifiers if modifier.compares())
    if comparing and not pipeline.compares:
        able = [plugin.name for plugin in registry.available("pipelines") if plugin.load().compares]
        raise CalibrationError(
            f"{comparing} compares inputs with those of the original model, which the pipeline "
            f"{type(pipeline).__name__} does not show; choose {' or '.join(able) or 'another'}"
        )
    empty = [str(index) for index, batch in enumerate(state.batches) if count_tokens(batch) == 0]
    if needy and empty:
        raise CalibrationError(
            f"{len(empty)} of {len(state.batches)} batches hold no token: {', '.join(empty[:8])}"
            f"{', ...' if len(empty) > 8 else ''}; leave them out"
        )


def check_devices(model: nn.Module, *, streamed: bool) -> None:
    """Refuse a model whose weights are on several devices, or on none.

    Raises:
        ModelError: names two weights and where they are, and says what to do.
    """
    places: dict[torch.device, str] = {}
    for name, parameter in model.named_parameters():
        if not (streamed and parameter.is_meta):
            places.setdefault(parameter.device, name)
    if len(places) > 1:
        found = " and ".join(f"{name} is on {device}" for device, name in list(places.items())[:2])
        raise ModelError(
            f"{found}: a model on several devices is not compressed; load it onto one of them, without device_map, or "
            "pass its folder and an output_dir, and its weights are read stage by stage"
        )
    if torch.device("meta") in places:
        raise ModelError(
            "the model has no weights in memory (meta device); load them, or pass its folder and an output_dir"
        )


def check_weights(stage: Stage) -> None:
    """Refuse weights that are not numbers.

    Raises:
        NumericsError: names the first tensor that has NaN or Inf.
    """
    for name, module in stage.modules.items():
        for part, tensor in module.named_parameters(recurse=False):
            check_finite(f"{name}.{part}", tensor)


def shortened(problems: Sequence[str], *, most: int = 8) -> str:
    """The problems, one a line; the first `most` and a count of the rest."""
    more = [f"... and {len(problems) - most} more of this kind"] if len(problems) > most else []
    return "\n".join([*problems[:most], *more])


def reason_untouched(layer: Layer, modifiers: Sequence[Modifier]) -> str:
    """Why a recipe left a layer alone."""
    ignoring = [type(modifier).__name__ for modifier in modifiers if layer.matches(modifier.ignore)]
    return f"ignored by {', '.join(ignoring)}" if ignoring else "no target of the recipe matches it"


def unreached(claims: Sequence[Claim], versions: Mapping[str, int], state: State) -> list[str]:
    """Claimed layers that nobody changed and nobody gave a reason for."""
    return [
        f"{type(claim.modifier).__name__}: {layer.name}"
        for claim in claims
        for layer in claim.layers
        if state.report[layer.name].status == "untouched"
        and state.report[layer.name].reason is None
        and layer.module.weight._version == versions[layer.name]
    ]


def _too_early(claims: Sequence[Claim]) -> list[str]:
    """Modifiers that must come last, and one that comes after each."""
    problems = []
    for position, claim in enumerate(claims):
        names = {layer.name for layer in claim.layers} if RUNS_LAST in claim.modifier.traits else set()
        after = [one.modifier for one in claims[position + 1 :] if any(layer.name in names for layer in one.layers)]
        other = next((type(one).__name__ for one in after if RUNS_LAST not in one.traits), None)
        if other is not None:
            own = type(claim.modifier).__name__
            problems.append(f"{own}: {other} comes after it and changes layers that it looks after; name {own} last")
    return problems


def _examples(pattern: str, known: Sequence[str]) -> str:
    found = near(pattern.removeprefix("re:"), known, count=3) or known[:3]
    return f"; the model has, for example, {', '.join(map(repr, found))}" if found else "; the model has no layers"
