"""The schemes of served.py, and what vLLM's kernels do otherwise than a scheme says."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from attrs import evolve

from coldpress import QuantizationArgs, preset, preset_names
from coldpress.attachment import detach, every_attachment
from coldpress.attention import tap_attention
from coldpress.bases.kv_cache import KVCache
from coldpress.bases.quantized_inputs import QuantizedInputs
from coldpress.numerics import dynamic_qparams, fake_quantize

CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor"}


class Case(NamedTuple):
    """A scheme, and how vLLM can be brought to serve it.

    Attributes:
        settings: of QuantizationModifier.
        emulate: offer vLLM its emulation kernels, after it has refused without.
        wide: the groups ask for the widened model.
        arguments: of `oneshot`.
        dtype: in which vLLM computes; ours computes in float32.
        differs: what vLLM's kernel does otherwise than the scheme says, and what makes our model do the same.
        rotations: of SpinQuantModifier, which comes first.
    """

    settings: dict[str, Any]
    emulate: bool = False
    wide: bool = False
    arguments: dict[str, Any] | None = None
    dtype: str = "float32"
    differs: tuple[str, Callable[[Any], None]] | None = None
    rotations: tuple[str, ...] = ()


def leave_inputs(model: Any) -> None:
    """Inputs are not rounded: so vLLM's emulation of MXFP8, and its kernel of packed int4 weights on CPUs."""
    for module in model.modules():
        detach(module, QuantizedInputs.kind)


def by_127(model: Any) -> None:
    """Scales of int8 inputs that are found while serving divide by 127, where the library divides by 127.5."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale).round() * scale

    _round_dynamic(model, "int", rounded)


def asymmetric(model: Any) -> None:
    """Inputs have zero points, whatever the scheme says: torch's matmul of int4 weights, which vLLM calls."""
    args = QuantizationArgs(num_bits=8, symmetric=False, strategy="token", dynamic=True)
    _round_dynamic(model, "int", lambda x: fake_quantize(x, *dynamic_qparams(x, args), args))


def by_reciprocal(model: Any) -> None:
    """Inputs are multiplied by the reciprocal of their scale in float8: what is near a tie may fall to either side."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 448
        return (x * scale.reciprocal()).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * scale

    _round_dynamic(model, "float", rounded)


def _round_dynamic(model: Any, kind: str, rounded: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for _, module, one in list(every_attachment(model.named_modules())):
        if isinstance(one, QuantizedInputs) and (one.args.type, one.args.dynamic) == (kind, True):
            detach(module, one.kind)
            module.register_forward_pre_hook(lambda _, args: (rounded(args[0]),))


def cut_off(model: Any) -> None:
    """Numbers of the KV cache go to the next number of float8 towards zero, with the largest scale of all heads.

    So does vLLM's attention for CPUs, which takes queries as they are.
    """

    def cut(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        nearest = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        beyond = nearest.float().abs() > (x / scale).abs()
        return (nearest.view(torch.uint8) - beyond.to(torch.uint8)).view(torch.float8_e4m3fn).to(x.dtype) * scale

    for _, module, one in list(every_attachment(model.named_modules())):
        if isinstance(one, KVCache):
            keys, values = module.k_scale.max(), module.v_scale.max()
            detach(module, one.kind)
            tap_attention(
                module,
                lambda _, states, keys=keys, values=values: evolve(
                    states, keys=cut(states.keys, keys), values=cut(states.values, values)
                ),
            )


def by_127_and_cut_off(model: Any) -> None:
    """Both."""
    by_127(model)
    cut_off(model)


def _of_preset(name: str) -> Case:
    weights, inputs = preset(name).weights, preset(name).input_activations
    grouped = weights.type == "int" and weights.strategy == "group"
    wide = weights.strategy == "block" or (inputs is not None and inputs.group_size == 128)
    settings = {"scheme": name, **({"group_size": 64} if grouped else {})}
    packed = name in ("W4A16", "W4A16_ASYM", "W4A8", "W4A4")  # whose kernel for CPUs takes no float32
    differs = ("divides by 127", by_127) if name == "W8A8" else None
    differs = ("multiplies by reciprocals", by_reciprocal) if name == "FP8_DYNAMIC" else differs
    differs = ("leaves inputs as they are", leave_inputs) if name in ("MXFP8", "W4A8", "W4A4") else differs
    dtype = "float16" if packed else "float32"
    return Case(settings, emulate=name.startswith(("NVFP4", "MXFP")), wide=wide, dtype=dtype, differs=differs)


def _int8(**inputs: Any) -> Case:
    inputs = {"num_bits": 8, **inputs}
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}, "input_activations": inputs}
    return Case({"config_groups": {"all": group}})


def _of_format(name: str, scheme: str, group_size: int = 64, **arguments: Any) -> Case:
    """A scheme in the format `gptq` or `awq`, whose scales are float16."""
    settings = {"scheme": scheme, "group_size": group_size}
    return Case(settings, arguments={"format": name, **arguments}, dtype="float16")


CASES: dict[str, Case] = {
    "the original": Case({}),
    **{name: _of_preset(name) for name in preset_names() if name not in ("UNQUANTIZED", "INT8")},
    "W4A16, one scale a row": Case({"scheme": "W4A16", "group_size": -1}, dtype="float16"),
    "W4A16, signed scales": Case({"scheme": "W4A16", "group_size": 64, "signed_scales": True}, dtype="float16"),
    "W4A8 in int-quantized": Case(
        {"scheme": "W4A8", "group_size": 64},
        arguments={"quantization_format": "int-quantized"},
        differs=("rounds inputs with zero points", asymmetric),
    ),
    "float8, static inputs, a scale a channel": Case(
        {
            "config_groups": {
                "all": {
                    "targets": ["Linear"],
                    "weights": {"type": "float", "strategy": "channel"},
                    "input_activations": {"type": "float", "strategy": "tensor", "observer": "static_minmax"},
                }
            }
        },
    ),
    "int8, static inputs": _int8(strategy="tensor"),
    "int8, static asymmetric inputs": _int8(strategy="tensor", symmetric=False),
    "int8, dynamic asymmetric inputs": _int8(strategy="token", dynamic=True, symmetric=False),
    "float8 weights alone": Case(
        {"config_groups": {"all": {"targets": ["Linear"], "weights": {"type": "float", "strategy": "channel"}}}}
    ),
    "W8A8 attention, int4 MLP": Case(
        {
            "config_groups": {
                "attention": evolve(preset("W8A8"), targets=["re:.*self_attn.*"]),
                "rest": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 64}},
            }
        },
        dtype="float16",
        differs=("divides by 127", by_127),
    ),
    "KV cache in float8": Case({"kv_cache_scheme": CACHE}, differs=("cuts off", cut_off)),
    "KV cache in float8, a scale a head": Case(
        {"kv_cache_scheme": CACHE | {"strategy": "attn_head"}}, differs=("one scale, cuts off", cut_off)
    ),
    "attention in float8": Case(
        {"config_groups": {"attention": {"targets": ["LlamaAttention"], "input_activations": CACHE}}},
        differs=("leaves queries as they are, cuts off", cut_off),
    ),
    "rotated by R1 and R2": Case({}, rotations=("R1", "R2")),
    "rotated by R1 and R2, W8A8": Case({"scheme": "W8A8"}, rotations=("R1", "R2"), differs=("divides by 127", by_127)),
    "KV cache in int8": Case({"kv_cache_scheme": CACHE | {"type": "int"}}),
    "gptq, int4": _of_format("gptq", "W4A16"),
    "gptq_v2, int4": _of_format("gptq", "W4A16", quantization_format="gptq_v2"),
    "gptq, int4, one scale a row": _of_format("gptq", "W4A16", -1),
    "gptq_v2, int4 with zero points": _of_format("gptq", "W4A16_ASYM"),
    "gptq, int2": _of_format("gptq", "W2A16"),
    "gptq, int3": _of_format("gptq", "W3A16"),
    "gptq, int8": _of_format("gptq", "W8A16"),
    "awq": _of_format("awq", "W4A16_ASYM"),
    "awq, one scale a row": _of_format("awq", "W4A16_ASYM", -1),
    "W8A8 and KV cache in float8": Case(
        {"scheme": "W8A8", "kv_cache_scheme": CACHE}, differs=("divides by 127, cuts off", by_127_and_cut_off)
    ),
}
