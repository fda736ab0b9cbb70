"""What a modifier is for, by its traits, and that its work survives the disk."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from coldpress import registry
from coldpress.arguments import DEFAULT_FORMAT
from coldpress.bases.weight_range import weight_qparams
from coldpress.errors import SchemeError
from coldpress.format import Format
from coldpress.modifier import PRUNES, QUANTIZES, TRANSFORMS, Modifier
from coldpress.numerics import dequantize, quantize
from coldpress.run.preflight import announced_attachments
from coldpress.stage import Layer, oriented
from coldpress.state import State
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress.testing.subject import Subject
from coldpress.testing.trace import changed, same_bits
from coldpress.testing.trial import Trial, claimed, inputs_of, needs_of, trial_of


def does_its_job(subject: Subject) -> None:
    """A quantizer reaches the grid and beats rounding, a pruner its sparsity; a mover keeps the model's function."""
    model, data = subject.build(), batches(batch_size=4)
    inputs, expected = inputs_of(model, data), logits(model, data)
    modifier = subject.make()
    trial = trial_of(subject, modifier, model=model, data=data)
    layers = [layer for layer in claimed(modifier, model) if trial.state.report[layer.name].reason is None]
    traits = subject.cls.traits
    if QUANTIZES in traits:
        _check_grid(layers, trial)
        _check_error(layers, trial, inputs if any(one.data for one in needs_of(modifier)) else {})
    if PRUNES in traits:
        _check_sparsity(layers, trial, getattr(modifier, "sparsity", None))
    rounds = [layer for layer in layers if any(one.scheme_for(layer) is not None for one in modifier.expand())]
    if TRANSFORMS in traits and rounds:
        _check_grid(rounds, trial)  # its scales are in the weights, so they cannot be compared with those before
    elif TRANSFORMS in traits and not traits & {QUANTIZES, PRUNES}:
        assert changed(trial.before, model), "it changes no weight, so it moves nothing"
        error = _relative(logits(model, data), expected)
        assert error < 1e-3, f"the model's function is not kept: its output moves by {error:.2%}"


def save_load(subject: Subject) -> None:
    """What is saved and loaded again says what the model in memory says."""
    import coldpress  # the public name, which loads transformers
    from coldpress.checkpoint import CheckpointWriter
    from coldpress.checkpoint.output import Output

    data = batches(rows=2)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        modifier: Modifier = subject.make()
        output = Output(CheckpointWriter(path), format_for(modifier)[1])
        trial = trial_of(subject, modifier, output=output, tokenizer=tiny_tokenizer())
        loaded: Any = coldpress.load_model(str(path), dtype="auto", device="cpu")
        check_same_logits(trial.model, loaded, data)


def format_for(modifier: Modifier) -> tuple[str, Format]:
    """The default format, or where it cannot tell what the modifier attaches, an installed one that can; its name."""
    announced = announced_attachments([modifier], State(model=tiny_llama()))
    names = [DEFAULT_FORMAT, *(plugin.name for plugin in registry.available("formats"))]
    for name in names:
        with suppress(SchemeError):
            form: Format = registry.find("formats", name)()
            for _, attached in announced:
                form.check_attachment(attached)
            return name, form
    kinds = ", ".join(sorted({attached.attachment.kind for _, attached in announced}))
    raise AssertionError(f"no installed format can tell the attachments {kinds}, so no checkpoint has them")


def check_same_logits(kept: nn.Module, loaded: nn.Module, data: list[dict[str, Tensor]]) -> None:
    """Two models say the same to within the rounding of float32."""
    error = _relative(logits(loaded, data), logits(kept, data))
    assert error < 1e-4, f"the model that is loaded says something else: its output is off by {error:.2%}"


def format_absent() -> str | None:
    """What is missing to save a compressed model; None when nothing is."""
    if any(plugin.name == DEFAULT_FORMAT for plugin in registry.available("formats")):
        return None
    return f"needs a checkpoint format: pip install 'coldpress[{DEFAULT_FORMAT}]'"


def _check_grid(layers: list[Layer], trial: Trial) -> None:
    for layer in layers:
        quantized = trial.state.quantized.get(layer.name)
        assert quantized is not None, f"{layer.name}: claimed, and state.set_quantized was not called for it"
        if quantized.scheme.weights is not None:
            expected = quantized.weight(layer.weight.dtype)
            assert same_bits(layer.weight, expected), f"{layer.name}: its weight is not what its codes stand for"


def _check_error(layers: list[Layer], trial: Trial, inputs: dict[str, Tensor]) -> None:
    """The error is at most that of rounding: of the outputs where data are read, else of the weights."""
    ours = rounding = 0.0
    for layer in layers:
        args = trial.state.quantized[layer.name].scheme.weights
        if args is None:
            continue
        old = _old_weight(layer, trial)  # [O, I]
        scale, zero_point = weight_qparams(old, args)
        rounded = dequantize(quantize(old, scale, zero_point, args), scale, zero_point, args, dtype=old.dtype)
        x = inputs.get(layer.name)
        for_ours, for_rounding = ((old - new) for new in (layer.weight, rounded))
        if x is not None:
            for_ours, for_rounding = (x @ change.t() for change in (for_ours, for_rounding))  # [T, O]
        ours += float(for_ours.square().sum())
        rounding += float(for_rounding.square().sum())
    what = "outputs" if inputs else "weights"
    # A tenth for what compressing one layer does to the inputs of the next.
    assert ours <= 1.1 * rounding, f"its squared error of the {what} is {ours:.3g}, that of rounding {rounding:.3g}"


def _check_sparsity(layers: list[Layer], trial: Trial, sparsity: object) -> None:
    """The share of zeros is as configured, to one weight a row, in each layer or in all of them together.

    Without a setting `sparsity` that is one number, it grew in each layer.
    """
    shares = {layer.name: 1 - layer.weight.count_nonzero().item() / layer.weight.numel() for layer in layers}
    if not isinstance(sparsity, float):
        grew = {one.name: one.weight.count_nonzero() < _old_weight(one, trial).count_nonzero() for one in layers}
        same = [name for name, more in grew.items() if not more]
        assert not same, f"{', '.join(same[:4])}: as many weights are zero as before"
        return
    slack = {layer.name: 1 / layer.weight.shape[1] + 1e-6 for layer in layers}
    wrong = [name for name, share in shares.items() if abs(share - sparsity) > slack[name]]
    total = sum(shares[one.name] * one.weight.numel() for one in layers) / sum(one.weight.numel() for one in layers)
    assert not wrong or abs(total - sparsity) <= max(slack.values()), (
        f"{wrong[0]}: {shares[wrong[0]]:.1%} are zero, and {total:.1%} of all layers that it claims; the setting "
        f"`sparsity` says {sparsity:.1%}: of each layer, or of all of them together"
    )


def _old_weight(layer: Layer, trial: Trial) -> Tensor:
    return oriented(trial.before[f"{layer.name}.weight"], layer.classes)


def _relative(new: Tensor, old: Tensor) -> float:
    return float(torch.linalg.vector_norm(new - old) / torch.linalg.vector_norm(old))
