"""A tokenizer from a GGUF file.

Transformers drops the rule of tokenizers that split digits one by one when it reads GGUF, so those are built here.
"""

from typing import Any

from coldpress.plugin import ModelError, reading
from coldpress_gguf.file import GgufFile

# Values of tokenizer.ggml.pre for which llama.cpp takes every digit as a word of its own, before GPT-2's rule.
_SINGLE_DIGITS = {"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"}
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def read_tokenizer(file: GgufFile) -> Any:
    """The tokenizer of a file.

    Raises:
        ModelError: the file holds none, or one that transformers cannot read.
    """
    if "tokenizer.ggml.tokens" not in file.metadata:
        raise ModelError(f"{file.path} holds no tokenizer; pass one with tokenizer=")
    with reading(f"the tokenizer of {file.path} cannot be read", ModelError):
        if file.metadata.get("tokenizer.ggml.pre") in _SINGLE_DIGITS:
            return _build_tokenizer(file.metadata)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(file.path.parent), gguf_file=file.path.name)


def _build_tokenizer(metadata: dict[str, Any]) -> Any:
    """A byte-level BPE tokenizer that takes every digit by itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", [])]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=bool(metadata.get("tokenizer.ggml.add_space_prefix", False))),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in added if k == _CONTROL])
    backend.add_tokens([AddedToken(t, normalized=False) for t, k in added if k == _USER_DEFINED])
    special = _special_tokens(metadata)
    _add_ends(backend, metadata, special)
    architecture = metadata.get("general.architecture")
    length = metadata.get(f"{architecture}.context_length")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
        **({"model_max_length": length} if length else {}),
    )


def _special_tokens(metadata: dict[str, Any]) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    found = {new: metadata.get(f"tokenizer.ggml.{old}_token_id") for old, new in names.items()}
    return {name: metadata["tokenizer.ggml.tokens"][i] for name, i in found.items() if i is not None}


def _add_ends(backend: Any, metadata: dict[str, Any], special: dict[str, str]) -> None:
    """Put the beginning and the end around every text, if the file says so."""
    from tokenizers.processors import TemplateProcessing

    begin = special.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token") else None
    end = special.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token") else None
    if begin or end:
        single = " ".join(part for part in (begin, "$A", end) if part)
        ends = [(token, backend.token_to_id(token)) for token in (begin, end) if token]
        backend.post_processor = TemplateProcessing(single=single, special_tokens=ends)
