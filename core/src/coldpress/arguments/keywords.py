"""The keywords of `oneshot` as types, so that a type checker finds a name that is misspelt and editors complete.

They are the attributes of the classes of this room and the settings of the pipelines that we ship, which a test
compares; another pipeline's go into `pipeline_settings`.  At run time `parse_arguments` says what is taken.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

AnyPath = str | os.PathLike[str]


class ModelKeywords(TypedDict, total=False):
    """As `ModelArguments`, without the model."""

    config_name: AnyPath | None
    tokenizer: Any
    processor: Any
    precision: str
    tie_word_embeddings: bool
    trust_remote_code_model: bool
    save_compressed: bool
    model_revision: str
    device: Any
    stream_weights: bool | None
    check_tensors: bool


class RecipeKeywords(TypedDict, total=False):
    """As `RecipeArguments`, without the recipe."""

    recipe_args: Mapping[str, Any] | Sequence[str] | None
    clear_sparse_session: bool
    stage: str | None
    seed: int


class DatasetKeywords(TypedDict, total=False):
    """As `DatasetArguments`."""

    dataset: Any
    dataset_config_name: str | None
    dataset_path: AnyPath | None
    dvc_data_repository: str | None
    splits: str | Sequence[str] | Mapping[str, str] | None
    batch_size: int | None
    data_collator: str | Callable[..., Any]
    num_calibration_samples: int | None
    shuffle_calibration_samples: bool
    max_seq_length: int | None
    pad_to_max_length: bool
    text_column: str
    column_map: Mapping[str, str] | Sequence[str]
    chat_template: AnyPath | None
    chat_template_kwargs: Mapping[str, Any] | Sequence[str]
    remove_columns: Sequence[str] | None
    preprocessing_func: Callable[..., Any] | None
    raw_kwargs: Mapping[str, Any] | Sequence[str]
    concatenate_data: bool | None
    streaming: bool
    overwrite_cache: bool
    preprocessing_num_workers: int | None
    dataloader_num_workers: int
    min_tokens_per_module: float | None
    moe_calibrate_all_experts: bool
    moe_min_tokens: int | None
    moe_few_tokens: str
    tracing_ignore: Sequence[str] | None
    sequential_offload_device: str
    sequential_targets_per_subgraph: int
    quantization_aware_calibration: bool
    use_loss_mask: bool
    sequential_prefetch: bool


class PipelineKeywords(TypedDict, total=False):
    """As `PipelineArguments`, and settings of the pipelines that we ship."""

    pipeline: Any
    pipeline_settings: Mapping[str, Any]
    sequential_targets: str | Sequence[str] | None
    propagate_error: bool | None
    true_sequential: bool | None
    offload_activations: Literal["auto", "cpu", "disk"]
    offload_limit: int | str


class OutputKeywords(TypedDict, total=False):
    """As `OutputArguments`."""

    output_dir: AnyPath | None
    log_dir: AnyPath | None
    overwrite: bool
    restart: bool
    format: str | Sequence[str] | None
    quantization_format: str | None
    return_model: bool
    quiet: bool


class OneshotKeywords(ModelKeywords, RecipeKeywords, DatasetKeywords, PipelineKeywords, OutputKeywords, total=False):
    """All that `oneshot` takes beside a model and a recipe."""


class PlanKeywords(OneshotKeywords, total=False):
    """All that `plan` takes: with `model_free=True`, settings of `model_free_ptq`."""

    max_workers: int | str | None
    revision: str


def with_signature(function: Callable[..., Any], keywords: type) -> None:
    """Let a function say which keywords it takes, so that IPython and `help` show them.

    Args:
        function: whose last parameter takes all keywords.
        keywords: one of the classes above.
    """
    found = inspect.signature(function)
    own = [one for one in found.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=annotation)
        for name, annotation in keywords.__annotations__.items()
        if name not in found.parameters
    ]
    function.__signature__ = found.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
