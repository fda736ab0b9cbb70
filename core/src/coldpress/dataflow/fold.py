"""Exact folding: a signal divided by a scale in its producer, multiplied back in the columns of its consumers.

    producer: w[j] <- w[j] / s[j]      consumers: W[:, c] <- W[:, c] * s[channels[c]]

The block computes what it computed; only the signal between the two is x / s.
"""

import torch
from torch import Tensor, nn

from coldpress.dataflow.pair import Pair, Site, spread
from coldpress.errors import ModelError, NumericsError


@torch.no_grad()
def fold(module: nn.Module, pair: Pair, scale: Tensor) -> None:
    """Divide the signal of a pair by `scale`, in place.

    Args:
        module: the block, or a model if the pair is named from there (`Pair.within`).
        pair: found by probing.
        scale: one positive factor per element of `pair.rows`, [C]; for stacks of experts also [E, C].

    Raises:
        ModelError: the scale does not fit the pair, or the module has not the pair's parameters.
        NumericsError: a factor is not finite and positive.
    """
    _check(pair, scale)
    parameters = _parameters(module, pair)
    given = 1 / _wide(scale) if pair.degree == 1 else _wide(scale) ** (-1 / pair.degree)
    full = given.new_ones(*given.shape[:-1], pair.width)  # [..., rows of the producer]
    full[..., pair.rows.to(full.device)] = given
    for site in pair.sites:
        _scale(parameters[site.parameter], site, full)
    for member in pair.members:
        _scale(parameters[member.site.parameter], member.site, spread(_wide(scale), member.channels))


def unfold(module: nn.Module, pair: Pair, scale: Tensor) -> None:
    """Take back `fold(module, pair, scale)`, up to rounding; arguments and errors as there."""
    _check(pair, scale)
    fold(module, pair, 1 / _wide(scale))


def gain(module: nn.Module, pair: Pair) -> Tensor:
    """What a norm multiplies its channels by, [C] float64.

    Raises:
        ModelError: the pair is that of no norm.
        NumericsError: a channel with a bias is multiplied by zero, so the bias cannot be divided by it.
    """
    if pair.kind != "norm" or pair.degree != 1:
        raise ModelError(f"{pair.producer} is no norm")
    weight, *biases = pair.sites
    found = _wide(module.get_parameter(weight.parameter).detach())[pair.rows] + weight.offset  # [C]
    for site in biases:
        if bool(((found == 0) & (module.get_parameter(site.parameter)[pair.rows] != 0)).any()):
            raise NumericsError(
                f"{weight.parameter} is zero where {site.parameter} is not: what the norm adds there cannot move into "
                "the layers that read it"
            )
    return found


def _check(pair: Pair, scale: Tensor) -> None:
    shapes = [(len(pair.rows),)] + ([(pair.num_experts, len(pair.rows))] if pair.num_experts else [])
    if tuple(scale.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ModelError(f"{pair.producer}: a scale of shape {wanted} is needed, got {tuple(scale.shape)}")
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise NumericsError(f"{pair.producer}: every factor of a scale must be finite and positive")


def _parameters(module: nn.Module, pair: Pair) -> dict[str, nn.Parameter]:
    names = [s.parameter for s in pair.sites] + [m.site.parameter for m in pair.members]
    try:
        return {n: module.get_parameter(n) for n in names}
    except AttributeError as e:
        raise ModelError(f"{type(module).__name__} has not what the pair {pair.producer!r} names: {e}") from e


def _scale(parameter: nn.Parameter, site: Site, factor: Tensor) -> None:
    """Multiply a parameter along one dimension by `factor`, [N] or [E, N]; in float64, 16-bit weights in float32."""
    dtype = torch.float32 if parameter.element_size() < 4 else torch.float64
    shape = [1] * parameter.ndim
    shape[site.dim] = factor.shape[-1]
    if factor.ndim == 2:
        shape[0] = factor.shape[0]
    factor = factor.to(parameter.device, dtype).reshape(shape)
    parameter.copy_((parameter.to(dtype) + site.offset) * factor - site.offset)


def _wide(scale: Tensor) -> Tensor:
    return scale.double() if scale.device.type != "mps" else scale.float()
