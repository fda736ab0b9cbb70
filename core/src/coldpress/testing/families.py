"""Tiny models of the families that people bring besides causal language models, by the classes of transformers."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from coldpress.testing.models import POSITIONS, VOCABULARY, filled

_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_IMAGE, _VIDEO, _VISION = VOCABULARY, VOCABULARY + 1, VOCABULARY + 2  # tokens of images
_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    **_TOKENS,
}
_CLIP: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def tiny_family(kind: str, *, tied: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A model with random weights.

    Args:
        kind: one of `FAMILIES`.
        tied: whether its head shares the weights of the embedding, where it has a head that may.
        dtype: of all weights.
        seed: of the weights.
    """
    return filled(FAMILIES[kind](tied), dtype, seed)


def _bert(tied: bool, **more: Any) -> Any:
    return transformers.BertConfig(vocab_size=VOCABULARY, tie_word_embeddings=tied, **_TEXT, **more)


def _llama_classifier(tied: bool) -> Any:
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, num_labels=3, tie_word_embeddings=tied, **_TEXT)
    return transformers.LlamaForSequenceClassification(config)


def _t5(tied: bool) -> Any:
    width = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(
        vocab_size=VOCABULARY, decoder_start_token_id=0, eos_token_id=2, pad_token_id=0, **width
    )
    return transformers.T5ForConditionalGeneration(config)


def _bart(tied: bool) -> Any:
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        d_model=64,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        tie_word_embeddings=tied,
        **_layers(),
        **_TOKENS,
    )
    return transformers.BartForConditionalGeneration(config)


def _whisper(tied: bool) -> Any:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        num_mel_bins=8,
        max_source_positions=32,
        max_target_positions=64,
        decoder_start_token_id=1,
        tie_word_embeddings=tied,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **_layers(),
        **_TOKENS,
    )
    return transformers.WhisperForConditionalGeneration(config)


def _layers() -> dict[str, int]:
    """Sizes of both halves of an encoder-decoder, in the words of BART."""
    halves = ("encoder", "decoder")
    sizes = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}
    return {f"{half}_{name}": size for half in halves for name, size in sizes.items()}


def _llava(tied: bool) -> Any:
    text = transformers.LlamaConfig(vocab_size=VOCABULARY + 3, num_key_value_heads=2, tie_word_embeddings=tied, **_TEXT)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP),
        text_config=text,
        image_token_index=_IMAGE,
        vision_feature_layer=-1,
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    return transformers.LlavaForConditionalGeneration(config)


_GEMMA: dict[str, Any] = {"head_dim": 16, "num_key_value_heads": 2, "sliding_window": 8, "query_pre_attn_scalar": 16}


def _gemma3_text(tied: bool) -> Any:
    config = transformers.Gemma3TextConfig(vocab_size=VOCABULARY, tie_word_embeddings=tied, **_TEXT, **_GEMMA)
    return transformers.Gemma3ForCausalLM(config)


def _gemma3(tied: bool) -> Any:
    config = transformers.Gemma3Config(
        text_config={"vocab_size": VOCABULARY + 3, "tie_word_embeddings": tied, **_TEXT, **_GEMMA},
        vision_config=_CLIP,
        mm_tokens_per_image=4,
        image_token_index=_IMAGE,
        boi_token_index=_VISION,
        eoi_token_index=_VIDEO,
        tie_word_embeddings=tied,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _qwen2_5_vl(tied: bool) -> Any:
    text = {
        **{"vocab_size": VOCABULARY + 4, "num_key_value_heads": 2, "tie_word_embeddings": tied, **_TEXT},
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    }
    vision = {
        **{"depth": 1, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64},
        **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
        **{"fullatt_block_indexes": [0], "window_size": 56},
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=_IMAGE,
        video_token_id=_VIDEO,
        vision_start_token_id=_VISION,
        vision_end_token_id=_VISION + 1,
        tie_word_embeddings=tied,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[bool], Any]] = {
    "bart": _bart,
    "bert": lambda tied: transformers.BertModel(_bert(tied)),
    "bert_classifier": lambda tied: transformers.BertForSequenceClassification(_bert(tied, num_labels=3)),
    "bert_masked": lambda tied: transformers.BertForMaskedLM(_bert(tied)),
    "gemma3": _gemma3,
    "gemma3_text": _gemma3_text,
    "llama_classifier": _llama_classifier,
    "llava": _llava,
    "qwen2_5_vl": _qwen2_5_vl,
    "t5": _t5,
    "whisper": _whisper,
}
"""Name to what builds a model, tied or not."""
