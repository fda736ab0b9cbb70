"""How a compressed model is saved later: what `save_pretrained` takes in transformers and in llm-compressor."""

import logging
from collections.abc import Mapping
from typing import Any

from attrs import Attribute, field, fields_dict, frozen

from coldpress.arguments.checks import is_a
from coldpress.errors import ArgumentError
from coldpress.spelling import suggest

log = logging.getLogger(__name__)


def _only(value: Any, otherwise: str) -> Any:
    """A validator of an argument that has one value here."""

    def check(_: Any, attribute: "Attribute[Any]", given: Any) -> None:
        if given is not value:
            raise ArgumentError(f"{attribute.name}={given!r} is not possible with compressed weights: {otherwise}")

    return check


@frozen(kw_only=True, eq=False)
class SaveArguments:
    """What `model.save_pretrained` of a compressed model takes beside the folder.

    Attributes:
        save_compressed: False writes dense weights, with transformers' own writer.
        overwrite: False refuses a folder that is not empty; otherwise the checkpoint in it is replaced, as transformers
            does, and files that no run of coldpress wrote stay or go to `<folder>.replaced`.
        quantization_format: the form of the weights within the format, such as "pack-quantized".
        max_shard_size: bytes of a file, or a size such as "5GB".
        is_main_process: False writes nothing.
        state_dict: the weights to write, which must be the model's own.
        safe_serialization: checkpoints are safetensors files.
        variant: files have the names that engines look for.
        save_original_format: False has no effect, with a warning: tensors have the names that they have in other
            checkpoints of the model's class, which engines look for.
        distributed_checkpoint: one process writes.
        push_to_hub: upload the model when it is written, to `repo_id` or the folder's name.
        repo_id: see `push_to_hub`, as are those that follow.
        token: of the hub.
        commit_message: of the upload.
        commit_description: of the upload.
        private: whether the repository is.
        create_pr: whether the upload becomes a pull request.
        revision: branch of the upload.
        tags: of the model card.
        save_function: no effect.
        save_peft_format: no effect.
        sparsity_config: no effect.
        skip_sparsity_compression_stats: no effect.
        disable_sparse_compression: no effect.
    """

    save_compressed: bool = field(default=True, validator=is_a(bool))
    overwrite: bool = field(default=True, validator=is_a(bool))
    quantization_format: str | None = field(default=None, validator=is_a(str, optional=True))
    max_shard_size: int | str | None = None
    is_main_process: bool = field(default=True, validator=is_a(bool))
    state_dict: Mapping[str, Any] | None = field(default=None, validator=is_a(Mapping, optional=True))
    safe_serialization: bool | None = field(
        default=True, validator=_only(True, "leave it out, checkpoints are safetensors files")
    )
    variant: str | None = field(default=None, validator=_only(None, "leave it out, engines look for the plain names"))
    save_original_format: bool = field(default=True, validator=is_a(bool))
    distributed_checkpoint: bool = field(default=False, validator=_only(False, "gather the model in one process first"))
    push_to_hub: bool = field(default=False, validator=is_a(bool))
    repo_id: str | None = field(default=None, validator=is_a(str, optional=True))
    token: Any = None
    commit_message: str | None = None
    commit_description: str | None = None
    private: bool | None = None
    create_pr: bool = False
    revision: str | None = None
    tags: Any = None
    save_function: Any = None
    save_peft_format: Any = None
    sparsity_config: Any = None
    skip_sparsity_compression_stats: Any = None
    disable_sparse_compression: Any = None


def parse_save_arguments(arguments: Mapping[str, Any]) -> SaveArguments:
    """Sort and check what `save_pretrained` was called with.

    Raises:
        ArgumentError: an unknown name, with a suggestion, or a value that is not possible.
    """
    known = fields_dict(SaveArguments)
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise ArgumentError(
            "\n".join(f"{name!r} is no argument of save_pretrained{suggest(name, known)}" for name in unknown)
        )
    found = SaveArguments(**arguments)
    if not found.save_original_format:
        log.warning("save_original_format=False has no effect: compressed weights have the names that engines look for")
    return found
