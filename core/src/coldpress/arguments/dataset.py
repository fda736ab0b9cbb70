"""What the model is calibrated with."""

from collections.abc import Callable, Mapping
from typing import Any

from attrs import Attribute, field, frozen

from coldpress.arguments.checks import at_least, is_a, one_of, path
from coldpress.arguments.pairs import of_loading, of_template, path_or_text, renamed
from coldpress.errors import ArgumentError

DATA_COLLATORS = ("truncation", "padding")
FEW_TOKENS = ("note", "round", "refuse")
_OF_CALIBRATION = {  # arguments of apply_chat_template
    **dict.fromkeys(("tokenize", "return_tensors", "return_dict", "return_assistant_tokens_mask"), "it makes tensors"),
    **dict.fromkeys(("padding", "truncation", "max_length"), "pass max_seq_length, and data_collator"),
    "chat_template": "pass chat_template",
}

# Arguments that say which data are read and how they become batches; `warn_idle` where no data are read.
DATA_SOURCE = ("dataset_config_name", "dataset_path", "splits", "raw_kwargs", "streaming")
DATA_PREPARATION = (
    "batch_size",
    "data_collator",
    "num_calibration_samples",
    "shuffle_calibration_samples",
    "max_seq_length",
    "pad_to_max_length",
    "text_column",
    "column_map",
    "chat_template",
    "chat_template_kwargs",
    "preprocessing_func",
    "concatenate_data",
)


@frozen(kw_only=True, eq=False)
class DatasetArguments:
    """What the model is calibrated with.

    One default differs from llm-compressor's.
    `preprocessing_func` is a function, never "file.py:name": an argument does not run a file.

    Attributes:
        dataset: a name, a file or folder (json, jsonl, csv, txt, parquet), a hub id, a `Dataset` or `DatasetDict`, a
            DataFrame, a list of texts, of rows or of token ids, something to iterate over, or a `DataLoader`, whose
            batches are taken as they are.  A name may have settings, "gsm8k:split=train,config=main"; several names
            in proportions are a dict from name to share, {"ultrachat_200k": 0.7, "my.jsonl": 0.3}.
        dataset_config_name: configuration of a data set on the hub; one that a plugin knows has a default.
        dataset_path: file or folder to read; the same as giving it as `dataset`, which may then name the kind of file
            ("json", "csv", "custom", ...), as in llm-compressor, or the data set that this is a copy of ("gsm8k").
        dvc_data_repository: no effect.
        splits: the split to use, such as "train" or "train[:10%]"; a list (its first) or {"calibration": ...}.
        batch_size: samples per batch, which are of near length; None puts neighbours of one length together, up to 2048
            tokens, which is faster, or keeps samples apart where the outcome would depend on it (averages of ranges of
            static inputs) and where they have images or sound.
        data_collator: samples of a batch are cut to the shortest ("truncation"), padded to the longest ("padding"),
            or joined by a function from a list of rows to a batch.
        num_calibration_samples: how many samples are used; None uses all.
        shuffle_calibration_samples: draw them at random (see `seed`), else take the first ones.
        max_seq_length: tokens per sample at most; None cuts where the tokenizer says that the model ends.
        pad_to_max_length: pad every sample to `max_seq_length`.
        text_column: the column that holds the text; of data sets that a plugin knows, that says what it is.
        column_map: rename columns before anything reads them, {"inquiry": "prompt"}, or ["inquiry=prompt"].
        chat_template: a Jinja template, or a file with one, for conversations, instead of the tokenizer's.
        chat_template_kwargs: what the chat template is given beside the turns, such as {"enable_thinking": False}.
        remove_columns: no effect.
        preprocessing_func: a function from row to row, applied before the tokenizer.
        raw_kwargs: more arguments of `datasets.load_dataset`.
        concatenate_data: join the texts and cut the join into samples of `max_seq_length` tokens; None does so with
            text files, whose lines are no samples, and takes every row of other data for a sample.  False makes a
            sample of each line of a text file, too.
        streaming: read a data set of the hub as it comes instead of fetching it whole, as those always are that a
            plugin knows.
        overwrite_cache: no effect.
        preprocessing_num_workers: no effect.
        dataloader_num_workers: no effect.
        min_tokens_per_module: no effect.
        moe_calibrate_all_experts: show every expert every token while it is calibrated; False shows it those that the
            router sends it.  What the model says is the same.
        moe_min_tokens: tokens that the layer of an expert is calibrated with at least; None for as many as it has input
            channels.
        moe_few_tokens: of expert layers that saw fewer: "note" says so in the report; "round" compresses them as if no
            token had come, which for most methods is rounding to nearest; "refuse" stops and says how much data to add.
        tracing_ignore: no effect.
        sequential_offload_device: no effect; see `offload_activations`.
        sequential_targets_per_subgraph: no effect yet.
        quantization_aware_calibration: no effect.
        use_loss_mask: count only tokens that have a loss: where `loss_mask` of a row is 1, where `labels` is not -100,
            or, of conversations, in what the chat template marks as generated.
        sequential_prefetch: no effect.
    """

    dataset: Any = field(default=None, converter=path)
    dataset_config_name: str | None = field(default=None, validator=is_a(str, optional=True))
    dataset_path: str | None = field(default=None, converter=path, validator=is_a(str, optional=True))
    dvc_data_repository: str | None = None
    splits: Any = field(default=None, validator=is_a(str, list, tuple, Mapping, optional=True))
    batch_size: int | None = field(default=None, validator=at_least(1, optional=True))
    data_collator: Any = field(default="truncation", validator=one_of(DATA_COLLATORS, or_callable=True))
    num_calibration_samples: int | None = field(default=512, validator=at_least(1, optional=True))
    shuffle_calibration_samples: bool = field(default=True, validator=is_a(bool))
    max_seq_length: int | None = field(default=None, validator=at_least(1, optional=True))
    pad_to_max_length: bool = field(default=False, validator=is_a(bool))
    text_column: str = field(default="text", validator=is_a(str))
    column_map: dict[str, str] = field(factory=dict, converter=renamed, validator=is_a(dict))
    chat_template: str | None = field(default=None, converter=path_or_text, validator=is_a(str, optional=True))
    chat_template_kwargs: dict[str, Any] = field(factory=dict, converter=of_template, validator=is_a(dict))
    remove_columns: list[str] | None = None
    preprocessing_func: Callable[[dict[str, Any]], dict[str, Any]] | None = field(default=None)
    raw_kwargs: dict[str, Any] = field(factory=dict, converter=of_loading, validator=is_a(dict))
    concatenate_data: bool | None = field(default=None, validator=is_a(bool, optional=True))
    streaming: bool = field(default=False, validator=is_a(bool))
    overwrite_cache: bool = False
    preprocessing_num_workers: int | None = None
    dataloader_num_workers: int = 0
    min_tokens_per_module: float | None = None
    moe_calibrate_all_experts: bool = field(default=True, validator=is_a(bool))
    moe_min_tokens: int | None = field(default=None, validator=at_least(1, optional=True))
    moe_few_tokens: str = field(default="note", validator=one_of(FEW_TOKENS))
    tracing_ignore: list[str] | None = None
    sequential_offload_device: str = "cpu"
    sequential_targets_per_subgraph: int = 1
    quantization_aware_calibration: bool = True
    use_loss_mask: bool = field(default=False, validator=is_a(bool))
    sequential_prefetch: bool = False

    @preprocessing_func.validator
    def _check_preprocessing(self, _: "Attribute[Any]", function: Any) -> None:
        if function is not None and not callable(function):
            raise ArgumentError(f"preprocessing_func must be a function from row to row, got {function!r}")

    @chat_template_kwargs.validator
    def _check_template(self, _: "Attribute[Any]", given: dict[str, Any]) -> None:
        for name in given:
            if name in _OF_CALIBRATION:
                raise ArgumentError(
                    f"chat_template_kwargs: {name!r} is decided by calibration: {_OF_CALIBRATION[name]}"
                )

    @dataset_path.validator
    def _check_path(self, _: "Attribute[Any]", path: str | None) -> None:
        if path is not None and self.dataset is not None and not isinstance(self.dataset, str):
            raise ArgumentError("dataset_path names a file, but dataset is data already: pass one of them")
