"""What is looked at before the first stage, so that a run that cannot end well does not begin."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from attrs import evolve, field, frozen
from torch import nn

from coldpress.attachment import Attached, Attachment, attachment_class
from coldpress.dataflow.fused import FusedLayers, split_groups
from coldpress.errors import BrokenPluginError, ModelError, SchemeError, TargetError
from coldpress.format import Format
from coldpress.modifier import PRUNES, QUANTIZES, RUNS_LAST, TRANSFORMS, Modifier
from coldpress.planned import Planned, Sweep
from coldpress.run.ignore import ignore_problems
from coldpress.schemes import Scheme, check_fit, check_supported
from coldpress.spelling import near
from coldpress.stage import Layer, Stage, find_layers
from coldpress.state import State

log = logging.getLogger(__name__)


@frozen(eq=False)
class Claim:
    """A modifier and the layers of the model that it will change.

    Attributes:
        modifier: who.
        layers: which, in model order.
        names: of these layers.
    """

    modifier: Modifier
    layers: tuple[Layer, ...]
    names: frozenset[str] = field(init=False)

    @names.default
    def _names(self) -> frozenset[str]:
        return frozenset(layer.name for layer in self.layers)


def claims_of(modifiers: Sequence[Modifier], model: nn.Module, *, beside: Iterable[str] = ()) -> list[Claim]:
    """Who claims which layers.

    Args:
        modifiers: of a recipe.
        model: whose layers.
        beside: names that `ignore` may mean too, and that are no part of the model.

    Raises:
        TargetError: a target or a pattern of `ignore` matches nothing, or all that a modifier targets is ignored; every
            such case is listed.
    """
    layers = list(find_layers(model.named_modules()))
    whole = Stage.whole(model)
    known = [layer.name for layer in layers] + sorted({type(layer.module).__name__ for layer in layers})
    claims, problems = [], []
    for modifier in modifiers:
        name = type(modifier).__name__
        claimed = modifier.layers(whole)
        matched = {pattern: modifier.matching(pattern, whole) for pattern in modifier.patterns()}
        missed = [pattern for pattern, found in matched.items() if not found]
        problems += [f"{name}: the target {p!r} matches no layer{_examples(p, known)}" for p in missed]
        problems += [
            f"{name}: {layer.name!r} has no weights ({' x '.join(map(str, layer.weight.shape))}): ignore it"
            for layer in claimed
            if not layer.weight.numel()
        ]
        ignored = all(layer.matches(modifier.ignore) for found in matched.values() for layer in found)
        if matched and not claimed and not missed and ignored:
            problems.append(f"{name}: every layer that its targets match is ignored, so it would do nothing")
        if not matched and _aims_at_nothing(modifier):
            log.warning("%s: targets is empty, so it changes no layer", name)
        claims.append(Claim(modifier, tuple(claimed)))
    claims = _quantized_later(claims)
    problems += ignore_problems(modifiers, model, beside)
    if problems:
        raise TargetError("\n".join(problems))
    return claims


def _aims_at_nothing(modifier: Modifier) -> bool:
    """Whether a modifier without targets prunes, or has a scheme for layers and not only for the KV cache."""
    return PRUNES in modifier.traits or getattr(modifier, "scheme", None) is not None


def _quantized_later(claims: Sequence[Claim]) -> list[Claim]:
    """The claims, those of equivalent transformations without layers that no modifier quantizes, where one does."""
    planned = {layer.name for claim in claims for layer in claim.layers if claim.modifier.scheme_for(layer) is not None}
    return [
        Claim(claim.modifier, tuple(layer for layer in claim.layers if layer.name in planned))
        if planned and TRANSFORMS in claim.modifier.traits
        else claim
        for claim in claims
    ]


def observed(modifiers: Sequence[Modifier], state: State) -> frozenset[str]:
    """Names of the modules of which modifiers that need data may request statistics.

    Where the plan quantizes something, equivalent transformations are for the layers of the plan, and see no others.
    """
    whole = Stage.whole(state.model)
    others = {layer.name for layer in whole.every_layer} - state.plan.keys() if state.plan else set()
    return frozenset(
        name
        for one in modifiers
        if one.needs().data
        for name in one.observes(whole)
        if not (TRANSFORMS in one.traits and name in others)
    )


def sweep_of(modifiers: Sequence[Modifier], state: State) -> Sweep:
    """What a pass over the stages is for, of these modifiers."""
    needs = [modifier.needs() for modifier in modifiers]
    return Sweep(
        observed=observed(modifiers, state),
        propagated_error=any(one.data and one.propagated_error for one in needs),
        original_inputs=any(one.original_inputs for one in needs),
        gradients=any(one.gradients for one in needs),
    )


def announced_attachments(modifiers: Sequence[Modifier], state: State) -> list[tuple[str, Attached]]:
    """The name of a modifier and what it will attach, of all that modifiers announce.

    Raises:
        BrokenPluginError: a kind is not installed under its name, or JSON cannot hold what it records.
        TargetError: two modifiers attach the same kind to one module.
    """
    whole, owners, found = Stage.whole(state.model), dict[tuple[str, str], str](), []
    for modifier in modifiers:
        own = type(modifier).__name__
        for name, attachment in modifier.announced(state, whole):
            _check_record(own, attachment)
            other = owners.get((name, attachment.kind))
            if other is not None:
                raise TargetError(f"{name}: {other} and {own} attach {attachment.kind!r}; drop it from one of them")
            owners[name, attachment.kind] = own
            found.append((own, Attached.on(name, whole.modules[name], attachment)))
    return found


def _check_record(owner: str, attachment: Attachment) -> None:
    kind = type(attachment)
    if attachment_class(attachment.kind) is not kind:
        raise BrokenPluginError(f"{owner}: {kind.__name__} is not what is installed as {attachment.kind!r}")
    try:
        kind.from_record(json.loads(json.dumps(attachment.to_record())))
    except (TypeError, ValueError) as error:
        raise BrokenPluginError(f"{owner}: {attachment!r} cannot be recorded: {error}") from error


def plan_of(
    claims: Sequence[Claim], *, complete: Callable[[dict[str, Planned]], dict[str, Planned]] = lambda plan: plan
) -> dict[str, Planned]:
    """Layer name to quantizer and scheme, of every layer that will be quantized.

    Args:
        claims: of all modifiers.
        complete: what a format decides, before schemes are held against layers.

    Raises:
        SchemeError: a scheme does not fit its layer or cannot be quantized yet, two modifiers quantize one layer, or
            one that quantizes by the schemes of an earlier modifier finds none, or all layers of a transformation have
            their codes before it.
        TargetError: a modifier prunes layers after another has quantized them.
    """
    plan: dict[str, Planned] = {}
    problems: list[str] = []
    layers: dict[str, Layer] = {}
    for claim in claims:
        problems += _moved_too_late(claim, plan)
        _check_order(claim, plan)
        adopted = 0
        for layer in claim.layers:
            planned = plan.get(layer.name)
            if planned is not None and claim.modifier.adopts(layer):
                plan[layer.name] = Planned(claim.modifier, planned.scheme)
                adopted += 1
                continue
            scheme = claim.modifier.scheme_for(layer)
            if scheme is None:
                continue
            if planned is not None:
                first, second = (type(one).__name__ for one in (planned.quantizer, claim.modifier))
                problems.append(f"{layer.name}: quantized by {first} and {second}; let one of them ignore it")
            plan[layer.name] = Planned(claim.modifier, scheme)
            layers[layer.name] = layer
        if not adopted and any(claim.modifier.adopts(layer) for layer in claim.layers):
            problems.append(
                f"{type(claim.modifier).__name__} has no scheme of its own, and no modifier before it has one for its "
                "layers: give it scheme (a preset such as 'W4A16') or config_groups"
            )
    plan = complete(plan)
    problems += [one for name, layer in layers.items() for one in _misfit(plan[name].scheme, layer)]
    if problems:
        raise SchemeError(shortened(_alike(problems)))
    return plan


def completed(plan: Mapping[str, Planned], form: Format, model: nn.Module) -> dict[str, Planned]:
    """A plan with schemes as a format completes them."""
    layers = {layer.name: layer.weight.shape for layer in find_layers(model.named_modules())}
    schemes = {name: plan[name].scheme for name in layers if name in plan}
    found = form.complete(schemes, {name: (layers[name][0], layers[name][1]) for name in schemes})
    return {name: evolve(planned, scheme=found.get(name, planned.scheme)) for name, planned in plan.items()}


def check_fused(state: State, schemes: Mapping[str, Scheme]) -> None:
    """Refuse schemes by which layers differ of which engines make one.

    A plan that quantizes a single layer of the model is an experiment that no engine serves, and worth a warning.

    Raises:
        SchemeError: names the layers.
    """
    split = split_groups(state.model, schemes, lambda: state.fact(FusedLayers))
    if split and len(schemes) == 1:
        log.warning(
            "%s\nengines make one layer of these, and will refuse the checkpoint; transformers reads it", split[0]
        )
    elif split:
        raise SchemeError(
            f"{shortened(split, most=4)}\nengines make one layer of each of these {len(split)} groups: give all layers "
            "of a group one scheme, or ignore all of them; only a dense checkpoint (save_compressed=False) may differ"
        )


def planned_only(claims: Sequence[Claim], plan: Mapping[str, Planned]) -> list[Claim]:
    """The claims, those of a quantizer without the layers that another one will quantize.

    One that adopts schemes claims every layer that it could quantize, before it is known which have a scheme.
    """
    return [
        Claim(claim.modifier, tuple(layer for layer in claim.layers if must_compress(claim.modifier, layer, plan)))
        if QUANTIZES in claim.modifier.traits
        else claim
        for claim in claims
    ]


def must_compress(modifier: Modifier, layer: Layer, plan: Mapping[str, Planned]) -> bool:
    """Whether a quantizer or pruner that claims a layer is the one that compresses it, and not a later quantizer."""
    planned = plan.get(layer.name)
    if QUANTIZES not in modifier.traits:
        return PRUNES in modifier.traits
    return not modifier.adopts(layer) if planned is None else planned.quantizer is modifier


def check_plan(state: State) -> None:
    """Refuse a plan, after it was decided anew, in which a scheme does not fit its layer.

    Raises:
        SchemeError: names the layers.
    """
    layers = {layer.name: layer for layer in find_layers(state.model.named_modules())}
    problems = [one for name, planned in state.plan.items() for one in _misfit(planned.scheme, layers[name])]
    if problems:
        raise SchemeError(shortened(_alike(problems)))


def _check_order(claim: Claim, plan: Mapping[str, Planned]) -> None:
    """Refuse to prune layers that an earlier modifier quantizes, but for a modifier that runs last."""
    modifier, name = claim.modifier, type(claim.modifier).__name__
    if RUNS_LAST in modifier.traits or PRUNES not in modifier.traits:
        return
    for layer in claim.layers:
        if layer.name in plan and plan[layer.name].scheme.weights is not None:
            first = type(plan[layer.name].quantizer).__name__
            raise TargetError(
                f"{layer.name}: {first} quantizes its weight, and {name} changes the weight afterwards, which its "
                f"scales were not made for: put {name} before {first}"
            )


def _misfit(scheme: Scheme, layer: Layer) -> list[str]:
    """Why a layer cannot be quantized so; nothing where it can."""
    try:
        check_supported(scheme)
        check_fit(scheme, (layer.weight.shape[0], layer.weight.shape[1]))
    except SchemeError as error:
        return [f"{layer.name}: {error}"]
    return []


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


def shortened(problems: Sequence[str], *, most: int = 8) -> str:
    """The problems, one a line; the first `most` and a count of the rest."""
    more = [f"... and {len(problems) - most} more of this kind"] if len(problems) > most else []
    return "\n".join([*problems[:most], *more])


def _alike(problems: Sequence[str]) -> list[str]:
    """Problems of layers, `name: what`: of those with one `what` the first, and how many there are like it."""
    first: dict[str, str] = {}
    counts = Counter(problem.partition(": ")[2] for problem in problems)
    for problem in problems:
        first.setdefault(problem.partition(": ")[2], problem)
    return [f"{one} ({counts[what] - 1} more like it)" if counts[what] > 1 else one for what, one in first.items()]


def _moved_too_late(claim: Claim, plan: Mapping[str, Planned]) -> list[str]:
    """A transformation all of whose layers are quantized before it."""
    if TRANSFORMS not in claim.modifier.traits or not claim.layers:
        return []
    if any(layer.name not in plan for layer in claim.layers):
        return []
    own, first = type(claim.modifier).__name__, type(plan[claim.layers[0].name].quantizer).__name__
    return [
        f"{own} moves scales between layers, and {first} quantizes all of its layers before; put {own} before {first}"
    ]


def _examples(pattern: str, known: Sequence[str]) -> str:
    found = near(pattern.removeprefix("re:"), known, count=3) or known[:3]
    return f"; the model has, for example, {', '.join(map(repr, found))}" if found else "; the model has no layers"
