"""Tiny random models in place of those that llm-compressor's example scripts load, by their hub ids."""

import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from coldpress.testing.models import filled

VOCABULARY = 49280  # of SmolLM2, whose tokenizer takes the place of every other, and some more

_TEXT = {
    "vocab_size": VOCABULARY,
    **{"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "max_position_embeddings": 1024},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
_EXPERTS = {
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"n_shared_experts": 1, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 128},
    **{"decoder_sparse_step": 1, "mlp_only_layers": [], "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
_LATENT = {"q_lora_rank": 128, "kv_lora_rank": 128, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 64}
_LINEAR = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2},
    **{"linear_key_head_dim": 64, "linear_value_head_dim": 64},
}
_DEEP = {"num_hidden_layers": 64, "layer_types": ["linear_attention", "full_attention"] * 32}
_INDEXER = {"index_n_heads": 2, "index_head_dim": 32, "index_topk": 16}
_VISION = {
    **{"hidden_size": 64, "intermediate_size": 128, "depth": 2, "num_heads": 2, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "out_hidden_size": 256, "image_size": 28, "patch_size": 14, "embed_dim": 64},
}
_AUDIO = {
    **{"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128},
    **{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
    **{"num_mel_bins": 16, "max_source_positions": 50},
}
_WHISPER = {
    **{"vocab_size": VOCABULARY, "d_model": 256, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 16},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256},
    **{"max_source_positions": 50, "max_target_positions": 128, "decoder_start_token_id": 1},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
_LANGUAGES = {
    **{"is_multilingual": True, "lang_to_id": {"<|en|>": 3}, "task_to_id": {"transcribe": 4, "translate": 5}},
    "no_timestamps_token_id": 6,
}

# Pattern over a hub id -> model type.
_TYPES = {
    r"llava-1.5|pixtral": "llava",
    r"Llama-4": "llama4",
    r"Llama-3.2.*Vision": "mllama",
    r"Qwen1.5-MoE": "qwen2_moe",
    r"Qwen3-Omni": "qwen3_omni_moe",
    r"Qwen3-VL-(30|235)": "qwen3_vl_moe",
    r"Qwen3-VL": "qwen3_vl",
    r"Qwen2.5-VL": "qwen2_5_vl",
    r"Qwen2-VL": "qwen2_vl",
    r"Qwen2-Audio": "qwen2_audio",
    r"Qwen3-Next": "qwen3_next",
    r"Qwen3\.(5|6)-(35B|122B|397B|.*A\d)|Qwen3\.8-1.0B": "qwen3_5_moe",
    r"Qwen3\.[58]": "qwen3_5",
    r"Qwen3.*(A3B|A22B)": "qwen3_moe",
    r"Qwen3": "qwen3",
    r"Qwen2": "qwen2",
    r"Mixtral": "mixtral",
    r"gemma-2-": "gemma2",
    r"gemma-3|medgemma": "gemma3",
    r"gemma-4": "gemma4",
    r"Phi-3": "phi3",
    r"DeepSeek-R1|Moonlight|Kimi-K[23]": "deepseek_v3",
    r"DeepSeek-V3.2": "deepseek_v32",
    r"DeepSeek-V4": "deepseek_v4",
    r"GLM-4.[67]": "glm4_moe",
    r"GLM-5.3-Flash": "glm5_next",
    r"GLM-5": "glm_moe_dsa",
    r"granite-4": "granitemoehybrid",
    r"PowerMoE": "granitemoe",
    r"Mellum2": "mellum",
    r"Trinity": "afmoe",
    r"Hy3": "hy_v3",
    r"North-Mini": "cohere2_moe",
    r"Nemotron-3": "nemotron_h",
    r"Step-3.5": "step3p7",
    r"Idefics3": "idefics3",
    r"MiniMax-M2": "minimax_m2",
    r"[Ll]lama|SmolLM|MODEL_ID|Muse": "llama",
    r"whisper": "whisper",
    r"InternVL3": "internvl",
    r"Mistral-Small-3.1": "mistral3",
}
_MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
_MERGERS = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
_BOTH = (
    "llama4",
    "qwen3_5",
    "qwen3_5_moe",
    "gemma3",
    "gemma4",
    "glm5_next",
)  # AutoModelForCausalLM of these takes the whole
_IMAGE_TOKENS = {"vision_start_token_id": 10, "vision_end_token_id": 11, "image_token_id": 12, "video_token_id": 13}


def type_of(hub_id: str) -> str:
    """The model type of a hub id.

    Raises:
        LookupError: no tiny model stands for it.
    """
    for pattern, model_type in _TYPES.items():
        if re.search(pattern, hub_id):
            return model_type
    raise LookupError(f"no tiny model for {hub_id}")


def build(hub_id: str, class_name: str) -> nn.Module:
    """A tiny random model of the class that a script names."""
    model_type = type_of(hub_id)
    torch.manual_seed(0)
    if model_type == "whisper":
        config: PreTrainedConfig = transformers.WhisperConfig(**_WHISPER)
    elif class_name == "AutoModelForCausalLM" and model_type not in _BOTH:
        config = _text(model_type)
    else:
        config = _whole(model_type, hub_id)
    if class_name == "AutoModelForCausalLM" and type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        class_name = "AutoModelForImageTextToText"  # a script that trusts remote code
    if "Qwen3.8-" in hub_id:  # a recipe names blocks up to the 64th
        config.get_text_config().update(_DEEP)
    kind = getattr(transformers, class_name)
    make = kind.from_config if class_name.startswith("Auto") else kind._from_config
    dtype = torch.float32 if model_type == "whisper" else torch.bfloat16  # as the hub has it
    model = filled(make(config, dtype=dtype), dtype, 0)
    for owner in (model.config, getattr(model.config, "thinker_config", model.config)):
        for name, token in _IMAGE_TOKENS.items():
            if hasattr(owner, name) or owner is not model.config:
                setattr(owner, name, token)
    if hasattr(model.config, "image_token_index"):
        model.config.image_token_index = 12
    if model_type == "whisper":
        for name, value in _LANGUAGES.items():
            setattr(model.generation_config, name, value)
    return model


def image_of(config: Any) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Token ids that stand for one image, and its pixels, as a model with this configuration takes them."""
    vision = config.vision_config
    if hasattr(vision, "spatial_merge_size"):
        start, end = (getattr(config, f"vision_{side}_token_id", None) for side in ("start", "end"))
        image = [start, *[config.image_token_id] * 4, end]
        width = 3 * getattr(vision, "temporal_patch_size", 2) * vision.patch_size**2
        pixels = {"pixel_values": torch.randn(16, width), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        return [token for token in image if token is not None], pixels
    token = getattr(config, "image_token_index", None) or config.image_token_id
    if config.model_type == "mllama":  # four tiles, of which the first is filled
        ratio = {
            "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.int64),
            "aspect_ratio_mask": torch.ones(1, 1, 4).long(),
        }
        return [token], {"pixel_values": torch.randn(1, 1, 4, 3, 28, 28), **ratio}
    if config.model_type == "mistral3":
        return [token] * 4, {"pixel_values": torch.randn(1, 3, 56, 56), "image_sizes": torch.tensor([[56, 56]])}
    shape = (1, 1, 3, 28, 28) if config.model_type == "idefics3" else (1, 3, 28, 28)  # patches of 14
    return [token] * (1 if config.model_type in ("idefics3", "internvl") else 4), {"pixel_values": torch.randn(shape)}


def _text(model_type: str) -> PreTrainedConfig:
    """A configuration of a language model with two small blocks."""
    known = AutoConfig.for_model(model_type).to_dict()
    small = {key: value for key, value in _EXPERTS.items() if key in known}
    small |= {key: value for group in (_TEXT, _LATENT, _LINEAR) for key, value in group.items() if key in known}
    if model_type in ("glm4_moe", "glm_moe_dsa"):
        small |= {"num_hidden_layers": 5, "first_k_dense_replace": 3}
    if model_type == "granitemoehybrid":
        small |= {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 16}
    if "hidden_size_per_layer_input" in known:
        small["hidden_size_per_layer_input"] = 0  # as the larger models of gemma 4 have it
    if model_type == "gemma2":
        small["query_pre_attn_scalar"] = 64
    if model_type.startswith(("deepseek", "glm_moe_dsa", "glm5")):
        small["num_key_value_heads"] = 4
        small.pop("head_dim", None)
    if model_type == "glm5_next_text":
        small |= {"qk_rope_head_dim": 0, "linear_head_dim": 64, "linear_num_heads": 4}
    if known.get("sliding_window"):
        small["sliding_window"] = 64
    if "index_n_heads" in known:
        small |= _INDEXER
    blocks = small.get("num_hidden_layers", 2)
    for key in ("layer_types", "indexer_types", "mlp_layer_types"):
        if known.get(key) and key not in small:
            kinds = list(dict.fromkeys(known[key]))
            small[key] = [kinds[block % len(kinds)] for block in range(blocks)]
    if blocks > 2 and "mlp_layer_types" in small:
        small["mlp_layer_types"] = ["dense"] * 3 + ["sparse"] * (blocks - 3)
    return AutoConfig.for_model(model_type, **small)


def _whole(model_type: str, hub_id: str) -> PreTrainedConfig:
    """A configuration of a model that has a vision or an audio tower beside its language model."""
    known = AutoConfig.for_model(model_type).to_dict()
    if model_type == "qwen3_omni_moe":
        return _omni(known)
    if "text_config" not in known:
        return _text(model_type)
    text = _text("mistral" if hub_id.endswith("pixtral-12b") else known["text_config"]["model_type"]).to_dict()
    if model_type == "mllama":
        text["cross_attention_layers"] = [1]
    if model_type == "llama4":
        text |= {"intermediate_size_mlp": 256, "moe_layers": [0, 1], "no_rope_layers": [1, 1]}
        text["interleave_moe_layer_step"] = 1
    if model_type in ("llava", "internvl", "mistral3"):
        text["head_dim"] = 64
    if model_type in _MROPE and isinstance(text.get("rope_parameters"), dict):
        text["rope_parameters"] |= {"mrope_section": [8, 12, 12], "rope_type": "default"}
    parts = {"text_config": text}
    if known.get("vision_config"):
        parts["vision_config"] = _vision(model_type, known["vision_config"])
    if known.get("audio_config"):
        parts["audio_config"] = _smaller(known["audio_config"], _AUDIO | {"d_model": 128})
    if model_type == "gemma4":
        parts["audio_config"] = None
    if model_type == "mistral3":
        parts["vision_config"]["image_size"] = 56
    if model_type in ("mistral3", "llava") and "head_dim" in parts["vision_config"]:
        parts["vision_config"]["head_dim"] = 32
    if model_type == "gemma3":
        parts["mm_tokens_per_image"] = 4
    if model_type == "internvl":
        parts["image_seq_length"] = 1
        parts["vision_config"] |= {"image_size": [28, 28], "patch_size": [14, 14]}
    return AutoConfig.for_model(model_type, **parts)


def _vision(model_type: str, known: dict[str, Any]) -> dict[str, Any]:
    vision = _smaller(known, _VISION)
    if model_type == "qwen2_vl":
        vision["hidden_size"] = 256
    if model_type == "mllama":
        vision |= {"intermediate_layers_indices": [0], "num_global_layers": 1, "vision_output_dim": 128}
    if model_type in _MERGERS:
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64, "patch_size": 14}
    if model_type == "llama4":
        vision |= {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64}
    return vision


def _omni(known: dict[str, Any]) -> PreTrainedConfig:
    """The thinker of Qwen3-Omni alone is small; what speaks is not built."""
    thinker = known["thinker_config"]
    text = _text("qwen3_omni_moe_text").to_dict()
    if isinstance(text.get("rope_parameters"), dict):
        text["rope_parameters"] |= {"mrope_section": [8, 12, 12], "rope_type": "default"}
    parts = {"text_config": text, "vision_config": _vision("qwen3_vl_moe", thinker["vision_config"])}
    parts["audio_config"] = _smaller(
        thinker["audio_config"], _AUDIO | {"d_model": 128, "output_dim": 256, "downsample_hidden_size": 128}
    )
    return AutoConfig.for_model("qwen3_omni_moe", thinker_config=parts, enable_audio_output=False)


def _smaller(known: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    return known | {key: value for key, value in sizes.items() if key in known}
