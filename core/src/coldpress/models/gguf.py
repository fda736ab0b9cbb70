"""A model and a tokenizer from a GGUF file, as dense and plain as if they came from a folder.

Plain Llamas are built here, in about two seconds where transformers takes fifteen; everything else goes through it.
So do tokenizers, but for those that split digits one by one: transformers drops that rule when it reads GGUF.
"""

import logging
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from coldpress.errors import CheckpointError, ModelError
from coldpress.models.gguf_file import GgufFile
from coldpress.models.quiet import no_bar

log = logging.getLogger(__name__)

# What a Llama may have to be built here; a file that says or holds more goes through transformers.
_SETTINGS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "rope.freq_base": "rope_theta",
}
_IMPLIED = {"vocab_size", "rope.dimension_count"}
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Values of tokenizer.ggml.pre for which llama.cpp takes every digit as a word of its own, before GPT-2's rule.
_SINGLE_DIGITS = {"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"}
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def load_gguf_model(path: Path, dtype: torch.dtype) -> Any:
    """The model of a GGUF file, decoded to `dtype`, on the CPU; nothing in it recalls that it came from GGUF.

    Raises:
        CheckpointError: the file is corrupt, truncated or lacks a tensor.
        ModelError: transformers cannot read this architecture from GGUF.
    """
    file = GgufFile(path)
    model = _load_llama(file, dtype) if _is_plain_llama(file) else _load_by_transformers(file, dtype)
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    return model


def load_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF file.

    Raises:
        CheckpointError: the file is corrupt or truncated.
        ModelError: the file holds no tokenizer, or one that transformers cannot read.
    """
    file = GgufFile(path)
    if "tokenizer.ggml.tokens" not in file.metadata:
        raise ModelError(f"{path} holds no tokenizer; pass one with tokenizer=")
    if file.metadata.get("tokenizer.ggml.pre") in _SINGLE_DIGITS:
        return _build_tokenizer(file.metadata)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise ModelError(f"transformers cannot read the tokenizer of {path}: {error}") from error


def _is_plain_llama(file: GgufFile) -> bool:
    architecture = str(file.metadata.get("general.architecture"))
    said = {key.removeprefix("llama.") for key in file.metadata if key.startswith("llama.")}
    if architecture != "llama" or not set(_SETTINGS) - {"rope.freq_base"} <= said <= {*_SETTINGS, *_IMPLIED}:
        return False
    whole_heads = {"llama.attention.head_count", "llama.attention.head_count_kv", "llama.feed_forward_length"}
    if any(not isinstance(file.metadata[key], int) for key in whole_heads):
        return False  # per layer
    head_dim = file.metadata["llama.embedding_length"] // file.metadata["llama.attention.head_count"]
    known = {new for new in (_hf_name(name) for name in file.names()) if new}
    return len(known) == len(file.names()) and file.metadata.get("llama.rope.dimension_count", head_dim) == head_dim


def _hf_name(name: str) -> str | None:
    """Transformers' name of a tensor of a plain Llama; None when a plain Llama has no such tensor."""
    parts = name.split(".")
    if parts[-1] != "weight":
        return None
    if len(parts) == 2 and parts[0] in _NAMES:
        return f"{_NAMES[parts[0]]}.weight"
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _BLOCK_NAMES:
        return f"model.layers.{parts[1]}.{_BLOCK_NAMES[parts[2]]}.weight"
    return None


def _load_llama(file: GgufFile, dtype: torch.dtype) -> Any:
    from transformers import LlamaForCausalLM

    config = _llama_config(file, dtype)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    weights = {}
    for name in file.names():
        new = _hf_name(name)
        assert new is not None
        weight = file.get(name)
        part = new.split(".")[-2]
        weights[new] = (_halves_apart(weight, heads[part]) if part in heads else weight).to(dtype)
    with no_bar():
        model, loading = LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise CheckpointError(f"{file.path} lacks {len(missing)} tensors of the model, the first is {missing[0]!r}")
    return model


def _llama_config(file: GgufFile, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig

    said = {new: file.metadata[f"llama.{key}"] for key, new in _SETTINGS.items() if f"llama.{key}" in file.metadata}
    # GGUF keeps 1e-5 as a float32; its shortest decimal is what was meant.
    said["rms_norm_eps"] = float(str(numpy.float32(said["rms_norm_eps"])))
    theta = said.pop("rope_theta", 10000.0)
    return LlamaConfig(
        **said,
        vocab_size=file.shape("token_embd.weight")[0],
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings="output.weight" not in file.names(),
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=file.metadata.get("tokenizer.ggml.padding_token_id"),
        architectures=["LlamaForCausalLM"],
        dtype=dtype,
    )


def _halves_apart(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of rotary dimensions, pairs side by side, to transformers' two halves, [O, I]."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _load_by_transformers(file: GgufFile, dtype: torch.dtype) -> Any:
    import transformers

    # Since 5.20 transformers keeps blocks packed where it has kernels for them; we want plain weights.
    unpack = getattr(transformers, "GgufConfig", None)
    more = {"quantization_config": unpack(dequantize=True)} if unpack else {}
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            str(file.path.parent), gguf_file=file.path.name, dtype=dtype, **more
        )
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise ModelError(f"transformers cannot read {file.path}: {error}") from error


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
