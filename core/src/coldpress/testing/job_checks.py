"""What a modifier is for, by its traits, and that its work survives the disk."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from coldpress import registry
from coldpress.arguments import DEFAULT_FORMAT
from coldpress.bases.quantizer import weight_qparams
from coldpress.errors import SchemeError
from coldpress.format import Format
from coldpress.modifier import PRUNES, QUANTIZES, TRANSFORMS, Modifier
from coldpress.numerics import dequantize, quantize
from coldpress.run.preflight import announced_attachments
from coldpress.stage import Layer, oriented
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress.testing.subject import Subject
from coldpress.testing.trace import changed, same_bits
from coldpress.testing.trial import Trial, claimed, inputs_of, run_trial


def does_its_job(subject: Subject) -> None:
    """A quantizer reaches the grid and beats rounding, a pruner its sparsity; a mover keeps the model's function."""
    model, data = tiny_llama(), batches(batch_size=4)
    inputs, said = inputs_of(model, data), logits(model, data)
    modifier = subject.make()
    trial = run_trial(modifier, model=model, data=data)
    layers = [layer for layer in claimed(modifier, model) if trial.state.report[layer.name].reason is None]
    traits = subject.cls.traits
    if QUANTIZES in traits:
        _check_grid(layers, trial)
        _check_error(layers, trial, inputs if modifier.needs().data else {})
    if PRUNES in traits:
        _check_sparsity(layers, trial, getattr(modifier, "sparsity", None))
    rounds = [layer for layer in layers if any(one.scheme_for(layer) is not None for one in modifier.expand())]
    if TRANSFORMS in traits and rounds:
        _check_grid(rounds, trial)  # its scales are in the weights, so they cannot be compared with those before
    elif TRANSFORMS in traits and not traits & {QUANTIZES, PRUNES}:
        assert changed(trial.before, model), "it changes no weight, so it moves nothing"
        error = _relative(logits(model, data), said)
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
        output = Output(CheckpointWriter(path), _format_for(modifier))
        trial = run_trial(modifier, output=output, tokenizer=tiny_tokenizer())
        loaded: Any = coldpress.load_model(str(path), dtype="auto", device="cpu")
        check_same_logits(trial.model, loaded, data)


def _format_for(modifier: Modifier) -> Format:
    """The default format, or where it cannot tell what the modifier attaches, an installed one that can."""
    announced = announced_attachments([modifier], tiny_llama())
    names = [DEFAULT_FORMAT, *(plugin.name for plugin in registry.available("formats"))]
    for form in (registry.find("formats", name)() for name in names):
        with suppress(SchemeError):
            for _, attached in announced:
                form.check_attachment(attached)
            found: Format = form
            return found
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
    """The share of zeros is as asked, to one weight a row; without a setting of that name, it grew."""
    for layer in layers:
        weight = layer.weight
        zeros = 1 - weight.count_nonzero().item() / weight.numel()
        if isinstance(sparsity, float):
            slack = 1 / weight.shape[1] + 1e-6
            assert abs(zeros - sparsity) <= slack, f"{layer.name}: {zeros:.1%} are zero, asked for {sparsity:.1%}"
        else:
            old = _old_weight(layer, trial)
            grew = weight.count_nonzero() < old.count_nonzero()
            assert grew, f"{layer.name}: as many weights are zero as before"


def _old_weight(layer: Layer, trial: Trial) -> Tensor:
    return oriented(trial.before[f"{layer.name}.weight"], layer.classes)


def _relative(new: Tensor, old: Tensor) -> float:
    return float(torch.linalg.vector_norm(new - old) / torch.linalg.vector_norm(old))
