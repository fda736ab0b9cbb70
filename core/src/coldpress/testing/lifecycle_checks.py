"""What a modifier promises that acts in training: clean, repeatable, and resumed as if never interrupted."""

from collections.abc import Mapping
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn

from coldpress.bases.weight_range import weight_qparams
from coldpress.numerics import quantize
from coldpress.quantized import Quantized, set_encoding
from coldpress.schemes import preset
from coldpress.stage import find_layers
from coldpress.testing.models import batches, tiny_llama
from coldpress.testing.subject import Subject
from coldpress.testing.trace import changed, differences, same_bits, trace_of, weights_of
from coldpress.training.lifecycles import Lifecycles

_STEPS = 4


def trains(subject: Subject) -> None:
    """Training with it ends without an error, with finite weights, and moves them."""
    model = trainable_model()
    before = weights_of(model)
    _train(subject, model)
    wrong = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    assert not wrong, f"not finite: {', '.join(wrong[:4])}"
    assert changed(before, model), "no weight was moved"


def training_leaves_no_trace(subject: Subject) -> None:
    """After training: no hooks, no parameters or attachments of its own."""
    model = trainable_model()
    before = trace_of(model)
    _train(subject, model)
    found = differences(before, trace_of(model))
    assert not found, "left behind: undo in detach what attach did:\n  " + "\n  ".join(found[:8])


def training_without_steps_changes_nothing(subject: Subject) -> None:
    """Attached and detached, the weights have the bits that they had."""
    model = trainable_model()
    before = weights_of(model)
    _train(subject, model, steps=0)
    touched = changed(before, model)
    assert not touched, f"changed without a step: {', '.join(touched[:4])}"


def training_is_repeatable(subject: Subject) -> None:
    """The same bits twice: what changes in training lives in the lifecycle, not on the modifier."""
    modifier, results = subject.make(), []
    for _ in range(2):
        model = trainable_model()
        _run(Lifecycles([modifier], model, _teacher()), model, _STEPS)
        results.append(weights_of(model))
    different = [name for name, tensor in results[0].items() if not same_bits(tensor, results[1][name])]
    assert not different, f"not the same in a second run: {', '.join(different[:4])}"


def training_resumes(subject: Subject) -> None:
    """Interrupted after two steps and resumed from its `state_dict`, it ends with the same bits."""
    whole, cut = trainable_model(), trainable_model()
    _train(subject, whole)
    first = Lifecycles([subject.make()], cut, _teacher())
    kept = _run(first, cut, 2, detach=False)
    again = trainable_model()
    second = Lifecycles([subject.make()], again, _teacher())
    _run(second, again, _STEPS, begin=2, kept=kept)
    different = [name for name, tensor in weights_of(whole).items() if not same_bits(tensor, weights_of(again)[name])]
    assert not different, f"not what an undisturbed run gives: {', '.join(different[:4])}; see Lifecycle.state_dict"


def trainable_model() -> nn.Module:
    """A tiny Llama with zeros in each weight, whose attention is quantized."""
    model: nn.Module = tiny_llama()
    for layer in find_layers(model.named_modules()):
        if "Linear" in layer.classes:
            layer.weight[:, ::2] = 0
        if "self_attn" in layer.name:
            scheme = preset("W4A16", group_size=32)
            assert scheme.weights is not None
            scale, point = weight_qparams(layer.weight, scheme.weights)
            codes = quantize(layer.weight, scale, point, scheme.weights)
            found = evolve(Quantized(scheme), codes=codes, scale=scale, zero_point=point)
            layer.weight.copy_(found.weight(layer.weight.dtype))
            set_encoding(layer.module, found, layer.weight)
    return model


def _teacher() -> nn.Module:
    model: nn.Module = tiny_llama(seed=1)
    return model


def _train(subject: Subject, model: nn.Module, *, steps: int = _STEPS) -> None:
    _run(Lifecycles([subject.make()], model, _teacher()), model, steps)


def _run(
    lifecycles: Lifecycles,
    model: nn.Module,
    steps: int,
    *,
    begin: int = 0,
    kept: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
    detach: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A loop by hand: plain gradient descent, which remembers nothing; returns the weights and the state of the end."""
    training, data = lifecycles.training, batches(rows=2 * _STEPS, batch_size=2)
    training.num_steps, training.num_epochs = _STEPS, 1.0
    training.step, training.epoch = begin, begin / _STEPS
    lifecycles.attach()
    if kept is not None:
        model.load_state_dict(dict(kept[0]))
        lifecycles.load_state_dict(kept[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    mode = model.training
    model.train()
    for batch in data[begin:steps]:
        with torch.enable_grad():
            output: Any = model(**batch, labels=batch["input_ids"])
            output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        training.step += 1
        training.epoch = training.step / _STEPS
        lifecycles.step()
    model.train(mode)
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}, lifecycles.state_dict()
    if detach:
        lifecycles.detach()
    return found
