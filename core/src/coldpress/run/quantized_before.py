"""Layers that an earlier run quantized: kept with their schemes, or, where this run changes them, told and forgotten.

oneshot(model, W8A8 on attention)  ──>  oneshot(model, W4A16 on the MLP)      a checkpoint with both schemes
oneshot(model, W8A8)               ──>  oneshot(model, W4A16)                 rounded twice: a warning, a note
oneshot(model, W8A8)               ──>  oneshot(model, pruning)               dense from here on: a warning
"""

import logging
from collections.abc import Mapping, Sequence

from torch import nn

from coldpress.attachment import Attached, attachments_on, detach
from coldpress.checkpoint.attachments import attachments_of
from coldpress.checkpoint.names import CheckpointNames
from coldpress.modifier import PRUNES, TRANSFORMS
from coldpress.quantized import encoding_of, set_encoding
from coldpress.run.preflight import Claim
from coldpress.schemes import Scheme, describe
from coldpress.state import State

log = logging.getLogger(__name__)


def schemes_before(model: nn.Module) -> dict[str, Scheme]:
    """Layer name to scheme, of every layer that an earlier run quantized."""
    found = {name: encoding_of(module) for name, module in model.named_modules()}
    return {name: encoding.quantized.scheme for name, encoding in found.items() if encoding is not None}


def keep_schemes(state: State, claims: Sequence[Claim]) -> None:
    """Take over the schemes of layers that this run leaves as they are, with their lines in the report.

    Args:
        state: whose report has a line for every layer.
        claims: of all modifiers.
    """
    changed = _changed(claims)
    for name, scheme in schemes_before(state.model).items():
        line = state.report[name]
        if name in changed:
            line.notes["quantized_before"] = describe(scheme)
        else:
            state.schemes[name] = scheme
            line.status, line.scheme, line.reason = "quantized", describe(scheme), "kept from an earlier run"


def forget_changed(state: State, claims: Sequence[Claim]) -> None:
    """Before the first stage: drop the schemes of layers that this run changes, and say so."""
    before, changed = schemes_before(state.model), _changed(claims)
    found = {name: scheme for name, scheme in before.items() if name in changed}
    _warn({n: s for n, s in found.items() if n in state.plan}, "they are rounded a second time, to another grid")
    _warn({n: s for n, s in found.items() if n not in state.plan}, "they are changed, and dense from here on")
    for name in found:
        module = state.model.get_submodule(name)
        set_encoding(module, None, module.weight)  # type: ignore[arg-type]
        for attachment in attachments_on(module):
            if attachment.of_scheme:
                detach(module, attachment.kind)


def attached_before(model: nn.Module, announced: Sequence[tuple[str, Attached]]) -> list[tuple[str, Attached]]:
    """What an earlier run attached and this one does not replace, such as a scheme of keys and values."""
    replaced = {(one.name, one.attachment.kind) for _, one in announced}
    found = attachments_of(model, CheckpointNames())
    return [("an earlier run", one) for one in found if (one.name, one.attachment.kind) not in replaced]


def _changed(claims: Sequence[Claim]) -> set[str]:
    """Names of layers whose weights a modifier changes."""
    changing = [
        (claim, bool(claim.modifier.traits & {PRUNES, TRANSFORMS}))  # those that quantize change what has a scheme
        for claim in claims
    ]
    return {
        layer.name
        for claim, every in changing
        for layer in claim.layers
        if every or claim.modifier.scheme_for(layer) is not None
    }


def _warn(schemes: Mapping[str, Scheme], consequence: str) -> None:
    if schemes:
        name, scheme = next(iter(schemes.items()))
        log.warning(
            "%d layers were quantized before, the first is %s (%s): %s",
            *(len(schemes), name, describe(scheme), consequence),
        )
