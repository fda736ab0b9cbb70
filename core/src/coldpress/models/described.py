"""Whether a model in memory is the one that its configuration describes, which readers of a checkpoint build."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from coldpress.checkpoint.published import quantization_of
from coldpress.experts import linear_experts
from coldpress.models.auto import build_outline
from coldpress.quantized import encoding_of

log = logging.getLogger(__name__)


def warn_of_undescribed(model: Any) -> None:
    """Say which tensors of a model its class would not build from its configuration, or with another shape.

    Layers that were taken out, vocabularies or widths that were changed without the configuration: what is written of
    such a model cannot be read.  A class that is not built from a configuration alone is not known.
    """
    try:
        outline = build_outline(type(model), model.config)
    except Exception:
        return
    apart = tuple(f"{name}." for name in linear_experts(model))
    built, own = _shapes(outline), _shapes(model)
    parameters = {name for name, _ in model.named_parameters()}
    wrong = [name for name in built if own.get(name) != built[name] and not name.startswith(apart)]
    wrong += [name for name in parameters if name not in built and not name.startswith(apart)]
    if wrong:
        name = wrong[0]
        there, described = (" x ".join(map(str, one[name])) if name in one else "none" for one in (own, built))
        log.warning(
            "%d tensors of the model are not those that its configuration describes, the first is %s (%s, and %s by "
            "model.config): readers of the checkpoint build what config.json says, and will refuse it or leave tensors "
            "out; set the configuration right (num_hidden_layers, vocab_size, ...) before",
            *(len(wrong), name, there, described),
        )


def warn_of_decoded(model: Any) -> None:
    """Say of a dense model that the folder which it was loaded from is compressed: its weights were rounded before."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    if not isinstance(name, str) or not name or not Path(name).is_dir():
        return
    if any(encoding_of(module) is not None for module in model.modules()):
        return  # which knows it, and says it by layer
    method = quantization_of(Path(name)).get("quant_method")
    if method:
        log.warning(
            "%s, which the model was loaded from, is compressed (%s), and its weights were made dense: what is "
            "quantized now is rounded a second time; pass the folder, whose codes are known, or start from the "
            "original model",
            *(name, method),
        )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    found = model.state_dict(keep_vars=True).items()
    return {name: tuple(tensor.shape) for name, tensor in found if isinstance(tensor, Tensor)}  # no extra state
