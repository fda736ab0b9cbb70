"""A plain Llama in a GGUF file, as transformers knows it: its configuration, and its tensors one by one."""

from typing import Any

import numpy
import torch
from torch import Tensor

from coldpress.plugin import CheckpointError, Weights
from coldpress_gguf.file import GgufFile

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
_IMPLIED = {"vocab_size", "rope.dimension_count", "attention.key_length", "attention.value_length"}
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


def is_plain_llama(file: GgufFile) -> bool:
    """Whether a file says and holds nothing but what `LlamaWeights` and `llama_config` understand."""
    architecture = str(file.metadata.get("general.architecture"))
    settings = {key.removeprefix("llama.") for key in file.metadata if key.startswith("llama.")}
    if architecture != "llama" or not set(_SETTINGS) - {"rope.freq_base"} <= settings <= {*_SETTINGS, *_IMPLIED}:
        return False
    whole_heads = {"llama.attention.head_count", "llama.attention.head_count_kv", "llama.feed_forward_length"}
    if any(not isinstance(file.metadata[key], int) for key in whole_heads):
        return False  # per layer
    head_dim = file.metadata["llama.embedding_length"] // file.metadata["llama.attention.head_count"]
    known = {new for new in (_hf_name(name) for name in file.names()) if new}
    sizes = ("rope.dimension_count", "attention.key_length", "attention.value_length")
    usual = all(file.metadata.get(f"llama.{key}", head_dim) == head_dim for key in sizes)
    return len(known) == len(file.names()) and usual


def llama_config(file: GgufFile) -> Any:
    """The configuration of a plain Llama, in bfloat16, since blocks have no dtype of their own."""
    from transformers import LlamaConfig

    settings = {new: file.metadata[f"llama.{key}"] for key, new in _SETTINGS.items() if f"llama.{key}" in file.metadata}
    # GGUF keeps 1e-5 as a float32; its shortest decimal is what was meant.
    settings["rms_norm_eps"] = float(str(numpy.float32(settings["rms_norm_eps"])))
    theta = settings.pop("rope_theta", 10000.0)
    return LlamaConfig(
        **settings,
        vocab_size=file.shape("token_embd.weight")[0],
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings="output.weight" not in file.names(),
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=file.metadata.get("tokenizer.ggml.padding_token_id"),
        architectures=["LlamaForCausalLM"],
        dtype=torch.bfloat16,
    )


class LlamaWeights(Weights):
    """The tensors of a plain Llama by transformers' names, each decoded to float32 when it is read.

    Args:
        file: of a plain Llama.
    """

    def __init__(self, file: GgufFile) -> None:
        self.files = [file.path]
        self._file = file
        self._names = {new: name for name in file.names() if (new := _hf_name(name)) is not None}
        heads, kv_heads = (file.metadata[f"llama.attention.{key}"] for key in ("head_count", "head_count_kv"))
        self._heads = {"q_proj": heads, "k_proj": kv_heads}

    def names(self) -> list[str]:
        """All tensors, in the order of the file."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, outermost dimension first."""
        return self._file.shape(self._place(name))

    def dtype(self, name: str) -> torch.dtype:
        """What blocks are decoded to."""
        return torch.float32

    def read(self, name: str) -> Tensor:
        """One tensor, decoded; the rows of queries and keys in transformers' order.

        Raises:
            CheckpointError: it is damaged, or its rows are no multiple of its heads.
        """
        tensor = self._file.get(self._place(name))
        heads = self._heads.get(name.split(".")[-2])
        if heads and (tensor.ndim != 2 or tensor.shape[0] % (2 * heads)):
            raise CheckpointError(
                f"{self._file.path}: {name!r} has the shape {tuple(tensor.shape)}, which {heads} heads do not divide"
            )
        return _halves_apart(tensor, heads) if heads else tensor

    def _place(self, name: str) -> str:
        if name not in self._names:
            raise CheckpointError(f"{self._file.path} holds no tensor {name!r}")
        return self._names[name]


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


def _halves_apart(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of rotary dimensions, pairs side by side, to transformers' two halves, [O, I]."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
