"""Architectures that llama.cpp computes as transformers does: their keys, the names of their tensors, what it changes.

llama.cpp rotates pairs of dimensions that lie side by side in some architectures, where transformers rotates halves:
there, rows of queries and keys are put in another order.  Gemma's norms multiply by 1 + w there, and by w here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from coldpress.plugin import ModelError

Keys = dict[str, "int | float | list[bool]"]

_EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\.(.+)")


@frozen
class Architecture:
    """One of llama.cpp's.

    Attributes:
        name: that it has there.
        norms: what the weights of norms are more there.
        rotates_pairs: rows of queries and keys are in another order there.
        more: settings of a configuration beyond the usual ones, as keys.
        obstacles: what a configuration says that llama.cpp does not compute.
    """

    name: str
    norms: float = 0.0
    rotates_pairs: bool = False
    more: Callable[[Any], Keys] = field(default=lambda config: {})
    obstacles: Callable[[Any], Sequence[str]] = field(default=lambda config: ())


def architecture_of(config: Any) -> Architecture:
    """The architecture of a configuration of transformers.

    Raises:
        ModelError: none is known, or the configuration says what llama.cpp does not compute.
    """
    kind = getattr(config, "model_type", "")
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"models of the type {kind!r} are not written as GGUF; {', '.join(sorted(ARCHITECTURES))} are: choose "
            "another format"
        )
    found = ARCHITECTURES[kind]
    obstacles = [*_common_obstacles(config), *found.obstacles(config)]
    if obstacles:
        raise ModelError(f"llama.cpp does not compute what this {kind} does: {'; '.join(obstacles)}")
    return found


def keys_of(config: Any, architecture: Architecture) -> Keys:
    """What a file says of a model, without the name of the architecture before each key."""
    heads, head_dim = config.num_attention_heads, head_dim_of(config)
    rope = _rope(config)
    keys: Keys = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * (rope.get("partial_rotary_factor") or 1)),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if hasattr(config, "rms_norm_eps"):
        keys["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    elif hasattr(config, "norm_epsilon"):
        keys["attention.layer_norm_epsilon"] = float(config.norm_epsilon)
    return {**keys, **_scaling(rope), **architecture.more(config)}


def scaling_name(config: Any) -> str | None:
    """What llama.cpp calls the scaling of rotations; None where there is none, or a tensor says it."""
    kind = str(_rope(config).get("rope_type") or "default")
    return kind if kind in ("linear", "yarn") else None


def rope_factors(config: Any) -> list[float] | None:
    """What the frequencies of rotations are divided by (Llama 3), one of each pair; None where they are not.

    As transformers computes them: long waves are stretched by `factor`, short ones are not, between them it is smooth.
    """
    rope, dim = _rope(config), head_dim_of(config)
    if rope.get("rope_type") != "llama3":
        return None
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context, found = float(rope["original_max_position_embeddings"]), []
    for place in range(0, dim, 2):
        turns = context / (2 * 3.141592653589793 * float(rope["rope_theta"]) ** (place / dim))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def head_dim_of(config: Any) -> int:
    """Columns of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class Names:
    """What tensors are called in a file.

    Args:
        config: of the model.
        architecture: of the model.
    """

    def __init__(self, config: Any, architecture: Architecture) -> None:
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        number = next(one for one in MODEL_ARCH if MODEL_ARCH_NAMES[one] == architecture.name)
        self._map = get_tensor_name_map(number, config.num_hidden_layers)

    def tensor(self, name: str) -> str:
        """What a tensor is called; one that is no weight of a module, such as sinks of attention, as if it were.

        Raises:
            ModelError: this architecture has no such tensor.
        """
        module, _, suffix = name.rpartition(".")
        if suffix in ("weight", "bias"):
            return f"{self.of(module)}.{suffix}"
        return f"{self.of(name)}.weight"

    def of(self, module: str) -> str:
        """What a module is called, that of an expert as all experts together.

        Raises:
            ModelError: this architecture has no such module there.
        """
        matched = _EXPERT.fullmatch(module)
        name = self._map.get_name(f"{matched[1]}.{matched[3]}" if matched else module)
        if name is None:
            raise ModelError(f"llama.cpp has no place for {module!r} in this architecture")
        return str(name)


def expert_of(module: str) -> int | None:
    """The number of an expert; None of what is none."""
    matched = _EXPERT.fullmatch(module)
    return int(matched[2]) if matched else None


def stack_of(module: str) -> str | None:
    """What all experts have in common whose matrices are one tensor with this one; None of what is no expert."""
    matched = _EXPERT.fullmatch(module)
    return f"{matched[1]}.*.{matched[3]}" if matched else None


def heads_of(module: str, config: Any, architecture: Architecture) -> int | None:
    """How many heads the rows of a module are that are put in another order; None where they are not."""
    last = module.rpartition(".")[2]
    if not architecture.rotates_pairs or last not in ("q_proj", "k_proj"):
        return None
    heads = int(config.num_attention_heads)
    return heads if last == "q_proj" else int(getattr(config, "num_key_value_heads", None) or heads)


def _rope(config: Any) -> Mapping[str, Any]:
    """The parameters of rotations, those of full attention where there are several kinds."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    rope = dict(rope.get("full_attention") or rope)
    rope.setdefault("rope_theta", getattr(config, "rope_theta", None) or 10000.0)
    return rope


def _scaling(rope: Mapping[str, Any]) -> Keys:
    if rope.get("rope_type") not in ("linear", "yarn"):
        return {}
    keys: Keys = {"rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        keys["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
    return keys


def _common_obstacles(config: Any) -> list[str]:
    rope = _rope(config)
    kind = str(rope.get("rope_type") or "default")
    if kind == "yarn":
        return _yarn(rope)
    return [] if kind in ("default", "linear", "llama3") else [f"rope_type is {kind!r}"]


def _yarn(rope: Mapping[str, Any]) -> list[str]:
    """Settings of yarn that a file has no key for, or that llama.cpp does not read from it."""
    found = [
        f"{name} of yarn is {rope[name]}, not {usual}"
        for name, usual in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True))
        if rope.get(name) not in (None, usual)
    ]
    if rope.get("attention_factor") is not None:
        found.append("attention_factor of yarn is set")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        found.append("mscale and mscale_all_dim of yarn are set")
    return found


def _activation(*known: str) -> Callable[[Any], list[str]]:
    def obstacles(config: Any) -> list[str]:
        name = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
        return [] if name in known else [f"its activation is {name!r}, not {known[0]!r}"]

    return obstacles


def _silu_without_biases(config: Any) -> list[str]:
    return _activation("silu")(config) + _biases(config)


def _biases(config: Any) -> list[str]:
    """Biases, in architectures where llama.cpp has no place for them."""
    return [f"{name} is true" for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]


def _llama(config: Any) -> list[str]:
    return _activation("silu", "swish")(config) + _window(config)


def _window(config: Any) -> list[str]:
    """Attention that sees less than the whole text, in architectures where llama.cpp's sees all of it."""
    window = getattr(config, "sliding_window", None)
    if not window or window >= config.max_position_embeddings:
        return []
    return [f"its attention sees a sliding window of {window}; set sliding_window to null"]


def _qwen2(config: Any) -> list[str]:
    sliding = getattr(config, "use_sliding_window", False)
    return _activation("silu")(config) + (["it has a sliding window"] if sliding else [])


def _qwen3(config: Any) -> list[str]:
    return _qwen2(config) + _biases(config)


def _qwen3_moe(config: Any) -> list[str]:
    found = _qwen3(config)
    if not config.norm_topk_prob:
        found.append("norm_topk_prob is false, and llama.cpp always makes the weights of experts add up to 1")
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        found.append("some of its layers have no experts")
    return found


def _experts(config: Any) -> Keys:
    count = getattr(config, "num_local_experts", None) or config.num_experts
    keys: Keys = {"expert_count": int(count), "expert_used_count": int(config.num_experts_per_tok)}
    width = getattr(config, "moe_intermediate_size", None)
    return {**keys, "expert_feed_forward_length": int(width)} if width else keys


def _gemma(config: Any) -> list[str]:
    return _activation("gelu_pytorch_tanh")(config) + _biases(config) + _gemma_scale(config)


def _gemma2(config: Any) -> list[str]:
    caps = [name for name in ("attn_logit_softcapping", "final_logit_softcapping") if not getattr(config, name, None)]
    return _gemma(config) + _windows(config, 2) + [f"{name} is null" for name in caps]


def _gemma3(config: Any) -> list[str]:
    found = _gemma(config) + _windows(config, 6)
    return found + (["attn_logit_softcapping is set"] if getattr(config, "attn_logit_softcapping", None) else [])


def _gemma_scale(config: Any) -> list[str]:
    """llama.cpp scales attention by the size of a head, but for the models of 27B parameters."""
    scale, layers = config.query_pre_attn_scalar, config.num_hidden_layers
    usual = config.hidden_size // config.num_attention_heads if layers in (46, 62) else head_dim_of(config)
    return [] if scale == usual else [f"query_pre_attn_scalar is {scale}, not {usual}"]


def _windows(config: Any, pattern: int) -> list[str]:
    usual = [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(config.num_hidden_layers)
    ]
    found = getattr(config, "layer_types", None)
    return [] if found in (None, usual) else [f"not every layer but each {pattern}. has a sliding window"]


def _gemma2_keys(config: Any) -> Keys:
    return {
        "attn_logit_softcapping": float(config.attn_logit_softcapping),
        "final_logit_softcapping": float(config.final_logit_softcapping),
        "attention.sliding_window": int(config.sliding_window),
    }


def _gemma3_keys(config: Any) -> Keys:
    keys: Keys = {"attention.sliding_window": int(config.sliding_window)}
    if getattr(config, "final_logit_softcapping", None):
        keys["final_logit_softcapping"] = float(config.final_logit_softcapping)
    local = (getattr(config, "rope_parameters", None) or {}).get("sliding_attention")
    return {**keys, "rope.freq_base_swa": float(local["rope_theta"])} if local else keys


def _phi3(config: Any) -> list[str]:
    return _activation("silu")(config) + _window(config)


def _phi3_keys(config: Any) -> Keys:
    context = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
    return {"rope.scaling.original_context_length": int(context), "attention.sliding_window": 0}


def _granite_keys(config: Any) -> Keys:
    return {
        "attention.scale": float(config.attention_multiplier),
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier),
        "logit_scale": float(config.logits_scaling),
    }


def _smollm3(config: Any) -> list[str]:
    usual = [int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)]
    found = _qwen3(config)
    return found + ([] if list(config.no_rope_layers) == usual else ["not each fourth layer is without rotation"])


def _gpt_oss(config: Any) -> list[str]:
    usual = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0, "attention_bias": True}
    values = {name: getattr(config, name, value) for name, value in usual.items()}
    found = [f"{name} is {value}, not {usual[name]}" for name, value in values.items() if value != usual[name]]
    return _activation("silu")(config) + _windows(config, 2) + found


def _gpt_oss_keys(config: Any) -> Keys:
    width = {"expert_feed_forward_length": int(config.intermediate_size)}
    return {**_experts(config), **width, "attention.sliding_window": int(config.sliding_window)}


def _starcoder2(config: Any) -> list[str]:
    found = _activation("gelu_pytorch_tanh")(config) + _window(config)
    return found + ([] if config.use_bias else ["use_bias is false"])


ARCHITECTURES = {
    "llama": Architecture("llama", rotates_pairs=True, obstacles=_llama),
    "mistral": Architecture("llama", rotates_pairs=True, obstacles=_llama),
    "mixtral": Architecture("llama", rotates_pairs=True, more=_experts, obstacles=_llama),
    "qwen2": Architecture("qwen2", obstacles=_qwen2),
    "qwen3": Architecture("qwen3", obstacles=_qwen3),
    "qwen3_moe": Architecture("qwen3moe", more=_experts, obstacles=_qwen3_moe),
    "gemma2": Architecture("gemma2", norms=1.0, more=_gemma2_keys, obstacles=_gemma2),
    "gemma3_text": Architecture("gemma3", norms=1.0, more=_gemma3_keys, obstacles=_gemma3),
    "gpt_oss": Architecture("gpt-oss", more=_gpt_oss_keys, obstacles=_gpt_oss),
    "phi3": Architecture("phi3", more=_phi3_keys, obstacles=_phi3),
    "granite": Architecture("granite", rotates_pairs=True, more=_granite_keys, obstacles=_activation("silu")),
    "smollm3": Architecture("smollm3", rotates_pairs=True, obstacles=_smollm3),
    "olmo2": Architecture("olmo2", obstacles=_silu_without_biases),
    "starcoder2": Architecture("starcoder2", obstacles=_starcoder2),
}
"""`model_type` of transformers to the architecture of llama.cpp; each is compared with llama.cpp in the tests."""
