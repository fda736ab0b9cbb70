"""Why layers were left alone, and that none fell between the stages."""

from collections.abc import Sequence

from coldpress.errors import TargetError
from coldpress.modifier import QUANTIZES, Modifier
from coldpress.pipeline import Pipeline
from coldpress.run.preflight import Claim, shortened
from coldpress.stage import Layer
from coldpress.state import State


def reason_untouched(layer: Layer, claims: Sequence[Claim]) -> str:
    """Why a recipe left a layer alone.

    Args:
        layer: that no modifier changed, and of which none gave a reason.
        claims: of all modifiers.
    """
    modifiers = [claim.modifier for claim in claims]
    ignoring = [modifier for modifier in modifiers if layer.matches(modifier.ignore)]
    claiming = [claim.modifier for claim in claims if layer.name in claim.names]
    reasons = [f"ignored by {_named(ignoring)}"] if ignoring else []
    reasons += [f"left as it was by {_named(claiming)}"] if claiming else []
    if reasons:
        return "; ".join(reasons)
    meaning = [one for one in modifiers if QUANTIZES in one.traits and layer.matches(one.patterns())]
    return f"left as it is by the scheme of {_named(meaning[:1])}" if meaning else "no target of the recipe matches it"


def check_complete(state: State, claims: Sequence[Claim], pipeline: Pipeline) -> None:
    """See that no layer of the model fell between the stages of the pipeline.

    Raises:
        TargetError: a claimed layer was in no stage.
    """
    lost = [name for name, line in state.report.items() if line.status == "untouched" and line.reason is None]
    claimed = frozenset[str]().union(*(claim.names for claim in claims))
    if claimed.intersection(lost):
        names = shortened([name for name in lost if name in claimed])
        raise TargetError(f"{names}\nin no stage of the pipeline {type(pipeline).__name__}, so never reached")
    for name in lost:
        state.report[name].reason = "in no stage of the pipeline"


def _named(modifiers: Sequence[Modifier]) -> str:
    return ", ".join(type(modifier).__name__ for modifier in modifiers)
