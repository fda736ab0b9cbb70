"""What the weights of a stage must be, before and after it is compressed."""

from collections.abc import Collection, Mapping, Sequence

import torch

from coldpress.errors import BrokenPluginError, SchemeError
from coldpress.layer_report import LayerReport
from coldpress.modifier import Modifier, declared_notes
from coldpress.numerics.finite import DAMAGED, check_finite
from coldpress.numerics.super_block import largest_multiple
from coldpress.planned import Planned
from coldpress.schemes import number_format
from coldpress.stage import Stage


def check_weights(stage: Stage, *, cause: str = DAMAGED) -> None:
    """Refuse weights that are not numbers.

    Args:
        stage: whose parameters.
        cause: what they may come from, and what to do.

    Raises:
        NumericsError: names the first tensor that has NaN or Inf.
    """
    for name, module in stage.modules.items():
        for part, tensor in module.named_parameters(recurse=False):
            check_finite(f"{name}.{part}", tensor, cause=cause)


def check_scales(stage: Stage, plan: Mapping[str, Planned]) -> None:
    """Refuse weights whose scales the dtype of scales cannot hold, before a code is chosen.

    Raises:
        SchemeError: names the layer and its largest weight.
    """
    for layer in stage.every_layer:
        args = plan[layer.name].scheme.weights if layer.name in plan else None
        if args is None or not (args.scale_dtype == torch.float16 or args.scale_bits) or not layer.weight.numel():
            continue
        grid, largest = number_format(args), float(layer.weight.abs().amax())
        scale, limits = largest / (grid.maximum - grid.minimum), torch.finfo(torch.float16)
        scale /= largest_multiple(args) if args.scale_bits else 1
        if scale > limits.max / 2 or 0 < scale < limits.smallest_normal / 2**10:
            raise SchemeError(
                f"{layer.name}: the scales of its weights do not fit into float16, which this format stores: its "
                f"largest weight is {largest:.3g}; ignore the layer, or choose a format that keeps the dtype of weights"
            )


def check_notes(
    lines: Mapping[str, LayerReport], known: Mapping[str, Collection[str]], modifiers: Sequence[Modifier]
) -> None:
    """Refuse notes that no modifier declares, which a reader of the report would have to guess at.

    Args:
        lines: of the report.
        known: name of each layer of a stage to the keys that it had before these modifiers.
        modifiers: that have compressed the stage.

    Raises:
        BrokenPluginError: names the layer and the key.
    """
    declared = declared_notes(modifiers)
    for layer, before in known.items():
        unknown = lines[layer].notes.keys() - declared.keys() - set(before)
        if unknown:
            names = " or ".join(dict.fromkeys(type(modifier).__name__ for modifier in modifiers))
            raise BrokenPluginError(
                f"{layer}: the note {min(unknown)!r} is not declared: add Note(key, unit, meaning) to `notes` of "
                f"{names}, so that the report can say what it means"
            )
