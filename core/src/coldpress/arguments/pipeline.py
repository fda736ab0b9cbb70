"""How the model is cut into stages, and how batches run through them."""

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from coldpress.arguments.checks import is_a

_PEER_PIPELINES = {"datafree": "data_free"}  # llm-compressor's spelling -> ours


def _pipeline_name(name: Any) -> Any:
    return _PEER_PIPELINES.get(name, name) if isinstance(name, str) else name


@frozen(kw_only=True, eq=False)
class PipelineArguments:
    """Which pipeline, and its settings.

    One default differs from llm-compressor's: `pipeline` is None instead of "independent".
    All modifiers of a recipe share one sweep over the data, which gives the same statistics for less work, and a
    recipe that reads no data makes no sweep.

    Attributes:
        pipeline: name of the pipeline; None takes what the recipe needs.
        pipeline_settings: of that pipeline, such as `sequential_targets` or `propagate_error`; they may also be passed
            as arguments of their own.
    """

    pipeline: str | None = field(default=None, converter=_pipeline_name, validator=is_a(str, optional=True))
    pipeline_settings: Mapping[str, Any] = field(factory=dict, validator=is_a(Mapping))
