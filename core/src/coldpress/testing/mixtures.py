"""Tiny mixtures of experts of several model types, with random weights."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from coldpress.testing.models import POSITIONS, VOCABULARY, filled

_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _mixtral(experts: int) -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**_SHARED, num_local_experts=experts, num_experts_per_tok=2)
    )


def _qwen3_moe(experts: int) -> Any:
    config = transformers.Qwen3MoeConfig(
        **_SHARED, head_dim=16, moe_intermediate_size=32, num_experts=experts, num_experts_per_tok=2
    )
    return transformers.Qwen3MoeForCausalLM(config)


def _deepseek_v3(experts: int) -> Any:
    """The first block is dense; the other has a shared expert."""
    config = transformers.DeepseekV3Config(
        **{**_SHARED, "num_key_value_heads": 4},
        moe_intermediate_size=32,
        n_routed_experts=experts,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
    )
    return transformers.DeepseekV3ForCausalLM(config)


def _gpt_oss(experts: int) -> Any:
    config = transformers.GptOssConfig(
        **_SHARED,
        head_dim=16,
        num_local_experts=experts,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return transformers.GptOssForCausalLM(config)


def _llama4(experts: int) -> Any:
    config = transformers.Llama4TextConfig(
        **_SHARED,
        head_dim=16,
        num_local_experts=experts,
        num_experts_per_tok=1,
        intermediate_size_mlp=96,
        interleave_moe_layer_step=1,
    )
    return transformers.Llama4ForCausalLM(config)


def _granitemoe(experts: int) -> Any:
    return transformers.GraniteMoeForCausalLM(
        transformers.GraniteMoeConfig(**_SHARED, num_local_experts=experts, num_experts_per_tok=2)
    )


def _olmoe(experts: int) -> Any:
    return transformers.OlmoeForCausalLM(
        transformers.OlmoeConfig(**_SHARED, num_experts=experts, num_experts_per_tok=2)
    )


def _qwen2_moe(experts: int) -> Any:
    config = transformers.Qwen2MoeConfig(
        **_SHARED,
        num_experts=experts,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
    )
    return transformers.Qwen2MoeForCausalLM(config)


def _jetmoe(experts: int) -> Any:
    sizes = {name: size for name, size in _SHARED.items() if name != "num_attention_heads"}
    config = transformers.JetMoeConfig(**sizes, kv_channels=16, num_local_experts=experts, num_experts_per_tok=2)
    return transformers.JetMoeForCausalLM(config)


def _dbrx(experts: int) -> Any:
    config = transformers.DbrxConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        n_heads=4,
        n_layers=2,
        max_seq_len=POSITIONS,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        ffn_config={"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": experts, "moe_top_k": 2},
        tie_word_embeddings=False,
    )
    return transformers.DbrxForCausalLM(config)


def _switch(experts: int) -> Any:
    config = transformers.SwitchTransformersConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_heads=4,
        num_experts=experts,
        decoder_start_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    return transformers.SwitchTransformersForConditionalGeneration(config)


_SLIDING: dict[str, Any] = {
    "head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "sliding_window_size": 8,
    "d_rel": 16,
    "rel_extent": 32,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
}


def _inkling(experts: int) -> Any:
    """Two shared experts, which the router weighs together with the others."""
    config = transformers.InklingTextConfig(
        **_SHARED, **_SLIDING, unpadded_vocab_size=VOCABULARY, n_routed_experts=experts, n_shared_experts=2
    )
    return transformers.InklingForCausalLM(config)


def _inkling2(experts: int) -> Any:
    """Experts that cap what lies between their projections, in float32, and add up in float32."""
    sizes = {name: size for name, size in _SHARED.items() if name != "intermediate_size"}
    config = transformers.Inkling2TextConfig(
        **sizes, **_SLIDING, unpadded_vocab_size=VOCABULARY, n_routed_experts=experts
    )
    return transformers.Inkling2ForCausalLM(config)


def _longcat(experts: int) -> Any:
    """Two more experts than it has weights for, which pass tokens on."""
    sizes = {
        name: size for name, size in _SHARED.items() if not name.startswith(("intermediate", "num_hidden", "num_key"))
    }
    config = transformers.LongcatFlashConfig(
        **sizes,
        num_layers=1,
        ffn_hidden_size=96,
        expert_ffn_hidden_size=96,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        head_dim=16,
        v_head_dim=16,
        moe_topk=2,
        n_routed_experts=experts,
        zero_expert_num=2,
    )
    return transformers.LongcatFlashForCausalLM(config)


_BUILDERS: dict[str, Callable[[int], Any]] = {
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v3": _deepseek_v3,
    "gpt_oss": _gpt_oss,
    "llama4": _llama4,
    "granitemoe": _granitemoe,
    "olmoe": _olmoe,
}

MIXTURES = tuple(_BUILDERS)
"""The model types that `tiny_mixture` builds."""

_OTHERS: dict[str, Callable[[int], Any]] = {
    "dbrx": _dbrx,
    "inkling": _inkling,
    "inkling2": _inkling2,
    "jetmoe": _jetmoe,
    "longcat": _longcat,
    "qwen2_moe": _qwen2_moe,
    "switch": _switch,
}
"""Mixtures that are of use to few tests: all experts in one matrix, or in one tensor a module, shared experts that a
router weighs, sums in float32, experts without weights, a gate for the shared expert, an encoder-decoder."""


def tiny_mixture(kind: str, *, experts: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A mixture of experts of two blocks, width 64.

    Args:
        kind: one of `MIXTURES`, `dbrx`, `inkling`, `inkling2`, `jetmoe`, `longcat`, `qwen2_moe` or `switch`.
        experts: of each block, an even number.
        dtype: of all weights.
        seed: of the weights.
    """
    return filled({**_BUILDERS, **_OTHERS}[kind](experts), dtype, seed)
