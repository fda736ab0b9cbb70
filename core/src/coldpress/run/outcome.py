"""What became of the layers of a stage: every claimed one was changed, or left alone for a reason."""

from collections.abc import Mapping, Sequence

from coldpress.errors import TargetError
from coldpress.modifier import PRUNES, QUANTIZES, Modifier
from coldpress.numerics import version
from coldpress.pipeline import Pipeline
from coldpress.run.preflight import Claim, shortened
from coldpress.stage import Layer, Stage
from coldpress.state import State


def note_changes(state: State, stage: Stage, claims: Sequence[Claim], before: Mapping[str, int]) -> None:
    """Report layers whose weight was changed in place, and see that none was missed.

    Args:
        state: of the run.
        stage: that was compressed.
        claims: on its layers.
        before: layer name to the version of its weight before.

    Raises:
        TargetError: a modifier claimed a layer, and neither changed nor skipped it.
    """
    missed = _unreached([claim for claim in claims if claim.modifier.traits & {QUANTIZES, PRUNES}], before, state)
    if missed:
        raise TargetError(
            f"{shortened(missed)}\nclaimed and left as it was: a modifier compresses every layer that it claims or "
            "calls state.skip(layer, reason)"
        )
    for layer in stage.every_layer:
        line = state.report[layer.name]
        if line.status == "untouched" and version(layer.weight) != before[layer.name]:
            line.status = "changed"
            line.sparsity = 1 - layer.weight.count_nonzero().item() / layer.weight.numel()


def reason_untouched(layer: Layer, modifiers: Sequence[Modifier]) -> str:
    """Why a recipe left a layer alone."""
    ignoring = [type(modifier).__name__ for modifier in modifiers if layer.matches(modifier.ignore)]
    if ignoring:
        return f"ignored by {', '.join(ignoring)}"
    quantizers = [modifier for modifier in modifiers if QUANTIZES in modifier.traits]
    meaning = [type(modifier).__name__ for modifier in quantizers if layer.matches(modifier.patterns())]
    return f"left as it is by the scheme of {meaning[0]}" if meaning else "no target of the recipe matches it"


def check_complete(state: State, claims: Sequence[Claim], pipeline: Pipeline) -> None:
    """See that no layer of the model fell between the stages of the pipeline.

    Raises:
        TargetError: a claimed layer was in no stage.
    """
    lost = [name for name, line in state.report.items() if line.status == "untouched" and line.reason is None]
    claimed = {layer.name for claim in claims for layer in claim.layers}
    if claimed.intersection(lost):
        names = shortened([name for name in lost if name in claimed])
        raise TargetError(f"{names}\nin no stage of the pipeline {type(pipeline).__name__}, so never reached")
    for name in lost:
        state.report[name].reason = "in no stage of the pipeline"


def _unreached(claims: Sequence[Claim], before: Mapping[str, int], state: State) -> list[str]:
    """Claimed layers that were not changed, and of which no reason was given."""
    return [
        f"{type(claim.modifier).__name__}: {layer.name}"
        for claim in claims
        for layer in claim.layers
        if state.report[layer.name].status == "untouched"
        and state.report[layer.name].reason is None
        and version(layer.weight) == before[layer.name]
    ]
