"""Tiny random models of every causal-LM type that transformers can build, made by shrinking default configurations.

No table of architectures: a field is shrunk by what its *name* means (`SIZES`), lists that run over the layers
are cut to one layer of each kind, and token ids are moved into the tiny vocabulary.

    default configuration ──shrink──> keyword arguments ──AutoConfig──> tiny configuration ──> float64 model
"""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from coldpress.dataflow import describe, fold
from coldpress.dataflow.describe import Description
from coldpress.dataflow.product_trace import ProductTrace

VOCABULARY, HIDDEN, HEADS, HEAD_DIM = 128, 64, 4, 16

# (pattern over the field's name, small value); the first that matches wins.
SIZES: list[tuple[str, Any]] = [
    (
        r"(unpadded_|audio_|decoder_|shape_|pronunciation_)?vocab_size(_per_layer_input)?|.*hash_byte_group_vocab",
        VOCABULARY,
    ),
    (r"ngram_vocab_size_base", 64),
    (r"vocab_offset", 0),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|context_length|max_target_positions", 64),
    (r"num_hidden_layers|n_layers?|num_layers|num_(en|de)coder_layers|(en|de)coder_layers|num_layers_per_stack", 2),
    (r"depth|num_blocks|num_global_layers|conf_num_hidden_layers", 2),
    (r"(multi_query_)?num_key_value_heads|num_kv_heads|num_query_groups|n_kv_heads|kv_n_heads", 2),
    (r"swa_num_key_value_heads|num_global_key_value_heads", 2),
    (r"(.*_)?num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads|attention_heads", HEADS),
    (r"num_(en|de)coder_attention_heads|index_n_heads|swa_num_attention_heads|linear_num_(heads|value_heads)", HEADS),
    (r"linear_num_key_heads", 2),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|gated_norm_rank|hc_lowrank|laurel_rank|adapter_rank", 32),
    (r"qk_rope_head_dim|qk_nope_head_dim|d_rel", 16),
    (r"qk_head_dim", 32),
    (r"(.*_)?head_dim|dim_head|kv_channels|d_head|attention_head_(size|dim)|mamba_(d_head|headdim)", HEAD_DIM),
    (r"moe_intermediate_size|expert_ffn_hidden_size|.*shared_expert.*intermediate_size", 32),
    (r"(.*_)?intermediate_size(_mlp)?|.*ffn_dim|ffn_hidden_size|dff|dim_ff|d_inner|feed_forward_size|mlp_dim", 96),
    (r"prompt_mid_dim", 32),
    (r"hidden_size_per_layer_input|ple_embed_dim", 16),
    (r"hidden_size.*|d_model|n_embd|(word_embed_proj|emb|embedding|embed)_dim|embedding_size|lru_width", HIDDEN),
    (
        r"(in|out)put_embedding_size|attention_hidden_size|out_hidden_size|backbone_hidden_size|router_hidden_size",
        HIDDEN,
    ),
    (r"vision_output_dim|projector_(in|out)put_dim|adapter_(in|out)_dim|adapter_input_size", HIDDEN),
    (r"pronunciation_embed_dim|shape_embed_dim", 32),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|index_topk_blocks|topk_group|num_selected_experts", 2),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts", 4),
    (r"n_shared_experts", 1),
    (r"zero_expert_num|n_group|num_expert_group", 2),
    (r"index_topk", 8),
    (
        r"sliding_window(_size)?|attention_window_size|attention_chunk_size|local_attention(_window_len)?|keep_window_size",
        8,
    ),
    (r"mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_d_state|ssm_state_size|state_size", 8),
    (r"mamba_chunk_size|chunk_size|index_block_size", 8),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"rotary_dim", 8),
    (r"query_pre_attn_scalar", 16),
    (r"num_kv_shared_layers|first_k_dense_replace|num_nextn_predict_layers", 0),
    (r"window_size", 4),
    (r"image_size", 56),
]
ATTEMPTS = ((1, False), (1, True), (2, False))  # how to shrink: layers of each kind, whether to fill empty fields
ABSENT = {"head_dim": HEAD_DIM, "num_key_value_heads": HEADS}  # fields that some types leave to the checkpoint
LAYER_LISTS = r"layer_types|layers_block_type|mlp_layer_types|block_types|attn_layers|attention_layers|indexer_types"


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the body after `seconds` of processor time (main thread only)."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def model_types() -> list[str]:
    """Every model type that transformers registers as a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def size_of(name: str) -> Any:
    """The small value that a field of this name gets, None where the name says nothing about size."""
    known = {**ABSENT, "layer_types": ["full_attention", "full_attention"], "default_language": "en_XX"}
    return known.get(name) or next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)


def small(name: str, value: Any) -> Any:
    """A small value for the field, or the value itself where its name says nothing about size."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if re.fullmatch(r".*token(_id|_index)|mask_index", name):
        return min(value, VOCABULARY - 1)
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size) if value > 0 else value
    return value


def shrink(fields: dict[str, Any], layers: int, *, absent: bool = False) -> dict[str, Any]:
    """Those fields of a configuration that must change to make it tiny, nested configurations included."""
    empty = [k for k, v in fields.items() if v is None and (absent or k in ABSENT) and size_of(k) is not None]
    changed: dict[str, Any] = {k: size_of(k) for k in empty}
    depth = next((fields[k] for k in ("num_hidden_layers", "n_layer", "num_layers") if fields.get(k)), 0)
    for name, value in fields.items():
        if name == "per_layer_config" and value:
            new = None  # layers that differ in size alone are no kind of their own
        elif isinstance(value, dict) and "model_type" in value:
            new: Any = {**value, **shrink(value, layers, absent=absent)}
        elif isinstance(value, list) and (len(value) == depth or re.fullmatch(LAYER_LISTS, name)) and value:
            new = one_of_each(value, layers)
        else:
            new = small(name, value)
            if new != value and re.fullmatch(r"num_hidden_layers|n_layers?|num_layers", name):
                new = layers
        if new != value or type(new) is not type(value):
            changed[name] = new
    if fields.get("is_decoder") is False and not fields.get("is_encoder_decoder"):
        changed["is_decoder"] = True
    if "attention_hidden_size" in fields and "attention_head_dim" in fields:  # zamba's attention is twice as wide
        changed |= {"attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 2 * HIDDEN // HEADS}
    if "expand" in fields and "num_heads" in fields:  # mamba's heads fill the expanded width
        changed["num_heads"] = int(fields["expand"]) * HIDDEN // HEAD_DIM
    if "qk_nope_head_dim" in fields and fields.get("per_layer_config"):
        changed["head_dim"] = 2 * HEAD_DIM  # latent attention's heads are two parts
    if "kv_lora_rank" in fields and fields.get("num_key_value_heads"):
        changed["num_key_value_heads"] = HEADS  # latent attention has no groups
    return changed


def one_of_each(values: list[Any], count: int) -> list[Any]:
    """`count` of the values, the different ones first in the order in which they appear."""
    distinct = [v for i, v in enumerate(values) if v not in values[:i]]
    return [distinct[i % len(distinct)] for i in range(count)]


def kinds_of_layer(fields: dict[str, Any]) -> int:
    """How many layers it takes to have one of each kind, over every list of the configuration."""
    lists = [v for k, v in fields.items() if isinstance(v, list) and re.fullmatch(LAYER_LISTS, k)]
    nested = [kinds_of_layer(v) for v in fields.values() if isinstance(v, dict)]
    return max([len({str(v) for v in values}) for values in lists] + nested, default=1)


def configuration(model_type: str, *, repeats: int = 1, absent: bool = False) -> Any:
    """A tiny configuration.

    Args:
        model_type: as transformers registers it.
        repeats: how often every kind of layer comes.
        absent: also fill sizes that the default configuration leaves empty.
    """
    fields = AutoConfig.for_model(model_type).to_dict()
    wanted = shrink(fields, max(2, kinds_of_layer(fields)) * repeats, absent=absent)
    return AutoConfig.for_model(model_type, **wanted)


def build(model_type: str) -> nn.Module:
    """A tiny random model in evaluation mode that runs on `token_batch`; several ways to shrink it are tried.

    Raises:
        Exception: whatever transformers raises where the type cannot be built so small, or does not run.
    """
    problems: list[Exception] = []
    for repeats, absent in ATTEMPTS:
        try:
            model = _from_configuration(configuration(model_type, repeats=repeats, absent=absent))
            logits(model, token_batch())
        except TimeoutError:
            raise
        except Exception as e:  # transformers raises anything
            problems.append(e)
        else:
            return model
    raise problems[0]


def can_be_built(model_type: str) -> bool:
    """Whether a tiny model comes to be at all, be it one that does not run."""
    for repeats, absent in ATTEMPTS:
        try:
            with time_limit(20):
                _from_configuration(configuration(model_type, repeats=repeats, absent=absent))
        except Exception:  # transformers raises anything
            continue
        return True
    return False


def _from_configuration(config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    ).eval()
    for _, parameter in sorted(model.named_parameters()):
        if parameter.ndim == 1:
            parameter.data += torch.rand_like(parameter) * 0.3  # norms of ones would hide mistakes
    return model


def token_batch(*, rows: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Random token ids of the tiny vocabulary, [rows, length]."""
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(3, VOCABULARY - 8, (rows, length), generator=generator)}


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the model answers, [rows, length, vocabulary], computed as a plain forward does it."""
    with torch.no_grad():
        return model(**batch, use_cache=False).logits


@frozen
class Outcome:
    """What the dataflow of one model type looks like.

    Attributes:
        kinds: how many kinds of blocks; of them `probed` could be probed.
        pairs: per kind the number of pairs.
        inputs: per kind the number of distinct inputs; `layers` the number of linear layers that share them.
        certificates: of every pair, by "block.producer".
        reasons: why a kind was not probed, a producer refused or a layer left without pair.
        logits_change: largest relative change of the logits after folding random scales into every block.
        float32_change: the same with the float32 inside the model's own code left as it is.
    """

    model_type: str
    seconds: float
    kinds: int
    probed: int
    pairs: tuple[int, ...]
    inputs: tuple[int, ...]
    layers: tuple[int, ...]
    certificates: dict[str, float]
    reasons: dict[str, str]
    logits_change: float
    float32_change: float


def examine(model_type: str) -> Outcome:
    """Build a type, probe it, fold random scales into every pair of every block, and compare the logits in float64."""
    model = build(model_type)
    start = time.perf_counter()
    found = describe(model, token_batch())
    seconds = time.perf_counter() - start
    probed = [k for k in found.kinds if k.dataflow]
    flows = [k.dataflow for k in probed if k.dataflow]
    changes = _changes_after_folding(model.double(), found)
    return Outcome(
        model_type=model_type,
        seconds=seconds,
        kinds=len(found.kinds),
        probed=len(probed),
        pairs=tuple(len(f.pairs) for f in flows),
        inputs=tuple(len(f.inputs) for f in flows),
        layers=tuple(sum(map(len, f.inputs)) for f in flows),
        certificates={f"{k.blocks[0]}.{p.producer}": p.certificate for k in probed for p in k.dataflow.pairs},
        reasons={
            **{k.blocks[0]: k.reason for k in found.kinds if k.reason},
            **{f"{k.blocks[0]}.{n}": r for k in probed for n, r in k.dataflow.refused.items()},
            **{f"{k.blocks[0]}.{n}": r for k in probed for n, r in k.dataflow.unpaired.items()},
        },
        logits_change=changes[0],
        float32_change=changes[1],
    )


def _changes_after_folding(model: nn.Module, found: Description) -> tuple[float, float]:
    batch = token_batch()
    before = _wide_logits(model, batch), _logits_or_nothing(model, batch)
    generator = torch.Generator().manual_seed(2)
    for kind in found.kinds:
        for name in kind.blocks if kind.dataflow else ():
            for pair in kind.dataflow.pairs:
                shape = (pair.num_experts, len(pair.rows)) if pair.num_experts else (len(pair.rows),)
                scale = torch.rand(shape, generator=generator, dtype=torch.float64) * 1.5 + 0.5
                fold(model, pair.within(name), scale)
    after = _wide_logits(model, batch), _logits_or_nothing(model, batch)
    first, second = (((a - b).abs().max() / b.abs().max()).item() for a, b in zip(after, before, strict=True))
    return first, second


def _wide_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with ProductTrace(()):
        return logits(model, batch)


def _logits_or_nothing(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    try:
        return logits(model, batch)
    except RuntimeError:  # some types do not run in float64 by themselves
        return torch.full((1,), torch.nan)
