"""What a modifier promises beside others: it works on what earlier modifiers have left, and a run that fails undoes it.

smoother, modifier    on a model     =    modifier    on the model that the smoother makes of it
change, modifier      on a model     =    modifier    on the changed model
"""

from contextlib import suppress
from typing import Any, ClassVar

import torch
from attrs import field, frozen
from torch import Tensor, nn

from coldpress.errors import CalibrationError
from coldpress.hookspecs import hookimpl
from coldpress.modifier import TRANSFORMS, Modifier
from coldpress.stage import Layer, Stage
from coldpress.state import State
from coldpress.testing.models import batches, tiny_llama
from coldpress.testing.subject import Subject
from coldpress.testing.trace import differences, trace_of
from coldpress.testing.trial import claimed, needs_of, results_of, share_different, trial_of

# Of a block of the tiny Llama: what makes channels, and what reads them.
_PAIRS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)


@frozen(kw_only=True, eq=False)
class PowersOfTwo(Modifier):
    """A smoother of tiny Llamas: channels are divided where made and multiplied where read, exactly."""

    traits: ClassVar[frozenset[str]] = frozenset({TRANSFORMS})

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Move scales, and say what has become of inputs and of what is kept of the stage."""
        layers = {layer.name: layer for layer in stage.every_layer}
        for block in [name.removesuffix(".mlp") for name in stage.modules if name.endswith(".mlp")]:
            for producer, readers in _PAIRS:
                read = [layers[f"{block}.{reader}"] for reader in readers]
                scale = _scale(read[0].weight)
                made = stage.modules[f"{block}.{producer}"]
                _fold(made, read, scale)
                state.transform_original(lambda made=made, read=read, scale=scale: _fold(made, read, scale))  # type: ignore[misc]
                state.rescale_inputs(read, scale)


@frozen(kw_only=True, eq=False)
class Change(Modifier):
    """Another weight for some layers, so that what was found out about the old one holds no longer."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Write it."""
        for layer in self.layers(stage):
            state.set_weight(layer, changed_weight(layer.weight))


@frozen(kw_only=True, eq=False)
class Fails(Modifier):
    """Raises in one stage.

    Attributes:
        where: name of the stage.
    """

    where: str = field()

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Raise, or do nothing."""
        if stage.name in (self.where, "model"):
            raise CalibrationError("the kit ends this run here")


def changed_weight(weight: Tensor) -> Tensor:
    """Rows in another order and half as large again, [O, I] -> [O, I]."""
    return weight.roll(1, 0) * 1.5


def follows_a_smoother(subject: Subject) -> None:
    """After an equivalent transformation it gives what it gives on a model that was transformed before the run."""
    model = tiny_llama()
    trial_of(subject, PowersOfTwo(), model=model)
    _check_same(subject, PowersOfTwo(), model, "an equivalent transformation that comes before it")


def follows_a_change(subject: Subject) -> None:
    """After a modifier that changes weights it gives what it gives where they were changed before the run."""
    model, last = tiny_llama(), _last_layers(subject)
    with torch.no_grad():
        for layer in claimed(subject.make(), model):
            if layer.name in last:
                layer.weight.copy_(changed_weight(layer.weight))
    _check_same(subject, Change(targets=last), model, "a modifier before it that changes weights")


def undoes_after_an_error(subject: Subject) -> None:
    """A run that ends with an error leaves no hook, no mode and no setting of torch behind."""
    failing: list[dict[str, Any]] = [{"after": Fails(where="model.layers.1")}]
    if any(one.data for one in needs_of(subject.make())):
        bad = {"input_ids": torch.full((1, 16), 10**6), "attention_mask": torch.ones(1, 16, dtype=torch.long)}
        failing.append({"data": [*batches(rows=2), bad]})
    for more in failing:
        model = tiny_llama()
        before, after = trace_of(model), more.pop("after", None)
        with suppress(Exception):
            trial_of(subject, *([] if after is None else [subject.make(), after]), model=model, **more)
        found = [line for line in differences(before, trace_of(model)) if not line.startswith("tensor ")]
        assert not found, "left behind by a run that failed:\n  " + "\n  ".join(found[:8])


def may_see_changes(subject: Subject) -> bool:
    """Whether its result is to follow changes of weights alone, and not what the stage was before."""
    if TRANSFORMS in subject.cls.traits:
        return False
    kept = ("original_inputs", "original_weights", "calls", "gradients", "loss_gradients", "measuring_pass")
    return not any(getattr(one, name) for one in needs_of(subject.make()) for name in kept)


def _check_same(subject: Subject, before: Modifier, model: nn.Module, what: str) -> None:
    """What `before` and the modifier give on a tiny Llama is what the modifier gives on `model`."""
    expected = results_of(trial_of(subject, model=model))
    found = results_of(trial_of(subject, before, subject.make()))
    for name, tensor in expected.items():
        share = share_different(tensor, found[name])
        assert share <= 0.01, (
            f"{name}: {share:.1%} of its values are as if {what} had not been: read weights and statistics in "
            "finalize; what initialize keeps in scratch is of the stage before"
        )


def _last_layers(subject: Subject) -> list[str]:
    """The last claimed layer of each block and of what follows: no other layer of its stage reads what it outputs."""
    names = [layer.name for layer in claimed(subject.make(), tiny_llama())]
    if subject.pipeline is not None:  # whose stages may hold several blocks
        return names[-1:]
    last = {name.split(".")[2] if name.startswith("model.layers.") else name: name for name in names}
    return list(last.values())


def _scale(weight: Tensor) -> Tensor:
    """Powers of two, one for each input of a layer, [I] float32."""
    return torch.tensor([0.5, 1, 2, 4]).repeat(weight.shape[1])[: weight.shape[1]].to(weight.device)


def _fold(made: nn.Module, read: list[Layer], scale: Tensor) -> None:
    weight: Any = made.weight
    weight.div_((scale if weight.ndim == 1 else scale[:, None]).to(weight.dtype))
    for layer in read:
        layer.weight.mul_(scale.to(layer.weight.dtype))
