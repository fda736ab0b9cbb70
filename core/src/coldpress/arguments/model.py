"""Which model is compressed, and how it is read."""

from typing import Any

from attrs import Attribute, field, frozen

from coldpress.arguments.checks import device_name, is_a, one_of, path, plain
from coldpress.errors import ArgumentError

PRECISIONS = ("auto", "bfloat16", "float16", "half", "float32", "full")


@frozen(kw_only=True, eq=False)
class ModelArguments:
    """Which model, and how it is read; what cannot act on a model of its kind is refused.

    Attributes:
        model: a folder, a hub id, a file or name that an installed source reads, or a model that is already in memory.
        config_name: folder, JSON file or hub id of the configuration to build the model with, instead of its own.
        tokenizer: a tokenizer, or where to find one; by default beside the model.  Not together with `processor`.
        processor: llm-compressor's other name of `tokenizer`.
        precision: dtype to read the weights in: auto (as stored), bfloat16, float16 (half), float32 (full).
        tie_word_embeddings: False gives the head weights of its own, where it shares the embedding's.
        trust_remote_code_model: run Python code that comes with the model or its tokenizer.
        save_compressed: False writes the compressed model's weights in their dense form.
        model_revision: branch, tag or commit of a model on the hub, and of the tokenizer beside it.
        device: where the model is put; None takes an accelerator if there is one, and leaves a model in memory alone.
        stream_weights: read the weights of a stage when its turn comes and free them when it is written, so that the
            model need not fit into memory; None does so whenever the model is a folder of safetensors files and
            there is an `output_dir`.
        check_tensors: where weights are streamed, read each of them once before the first stage, and refuse NaN and
            infinity then, not when their stage comes; a model in memory is always looked at before.
    """

    model: Any = field(converter=path)
    config_name: str | None = field(default=None, converter=path, validator=is_a(str, optional=True))
    tokenizer: Any = field(default=None, converter=path)
    processor: Any = field(default=None, converter=path)
    precision: str = field(default="auto", converter=plain, validator=one_of(PRECISIONS))
    tie_word_embeddings: bool = field(default=True, validator=is_a(bool))
    trust_remote_code_model: bool = field(default=False, validator=is_a(bool))
    save_compressed: bool = field(default=True, validator=is_a(bool))
    model_revision: str = field(default="main", validator=is_a(str))
    device: str | None = field(default=None, converter=device_name, validator=is_a(str, optional=True))
    stream_weights: bool | None = field(default=None, validator=is_a(bool, optional=True))
    check_tensors: bool = field(default=False, validator=is_a(bool))

    @model.validator
    def _check_model(self, _: "Attribute[Any]", model: Any) -> None:
        if model is None or model == "":
            raise ArgumentError(
                "model is missing: pass a folder, a hub id, a file or name that a source reads, or a loaded model"
            )

    @tokenizer.validator
    @processor.validator
    def _check_tokenizer(self, attribute: "Attribute[Any]", value: Any) -> None:
        if value is not None and not isinstance(value, str) and not callable(getattr(value, "save_pretrained", None)):
            raise ArgumentError(f"{attribute.name} must be a path, a name on the hub or a tokenizer, got {value!r}")
        if self.tokenizer is not None and self.processor is not None:
            raise ArgumentError("tokenizer and processor are two names of one argument: pass one of them")
