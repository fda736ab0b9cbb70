"""Which engines load what: the table of docs/schemes.md as data.

What vLLM does on a CPU was measured (`benchmarks/results/served.md`); what it does elsewhere was read in its source.
"""

from attrs import evolve, frozen

from coldpress.schemes.presets import preset, preset_names
from coldpress.schemes.quantization_args import QuantizationArgs
from coldpress.schemes.scheme import Scheme

FORMAT = "compressed-tensors"
"""The format of the checkpoints that engines were given; nothing is known here of others."""

TRANSFORMERS, LIBRARY = "transformers 5.23", "compressed-tensors 0.20"
VLLM_CPU, VLLM = "vLLM 0.32 on a CPU", "vLLM 0.32 elsewhere"

_NO_KERNEL = "no kernel: the one for CPUs holds 4 bits"
_ALL = "CUDA, ROCm, XPU"
_PACKED = "kernels for CUDA differ by width"
_HUMMING = "CUDA, with the package Humming"

_REFUSED: dict[str, str] = {
    "FP8": "a function that its build for CPUs lacks",
    "FP8_BLOCK": "requires AMX tile support",
    "NVFP4A16": "Marlin FP4 not available",
    **dict.fromkeys(("MXFP4", "MXFP4A16", "MXFP4XFP8"), "its emulation needs amd-quark, which is for CUDA devices"),
    **dict.fromkeys(("MXFP6A16", "MXFP6A8"), "floats have 4 or 8 bits there"),
    "W4AFP8": "no compressed-tensors compatible scheme was found",
    **dict.fromkeys(("W2A16", "W3A16", "W5A16", "W6A16", "W7A16", "W8A16"), _NO_KERNEL),
    **dict.fromkeys(("W2A8", "W3A8", "W5A8", "W6A8", "W7A8", "W2A4", "W3A4"), _NO_KERNEL),
}
"""Presets that vLLM refuses on a CPU, and in what words; it serves all others."""

_ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(("W4A16", "W4A16_ASYM", "W8A8", "INT8", "FP8_DYNAMIC", "FP8", "FP8_BLOCK"), _ALL),
    **dict.fromkeys(("MXFP8", "MXFP8A16", "MXFP4", "MXFP4A16", "MXFP4XFP8"), _ALL),
    "NVFP4": "CUDA, ROCm",
    "NVFP4A16": "CUDA",
    "W4AFP8": "CUDA, compute capability 9.0",
    **dict.fromkeys(("W2A16", "W3A16", "W5A16", "W6A16", "W7A16", "W8A16"), _PACKED),
    **dict.fromkeys(("W4A8", "W4A4", "W2A8", "W3A8", "W5A8", "W6A8", "W7A8", "W2A4", "W3A4"), _HUMMING),
}
"""Where vLLM has a kernel, by its source; nowhere for presets that are missing."""


@frozen
class EngineSupport:
    """What an engine does with a scheme.

    Attributes:
        engine: its name and version.
        loads: whether it does; None where nothing is known.
        why: where that is from.
    """

    engine: str
    loads: bool | None
    why: str


def engines_for(scheme: Scheme) -> list[EngineSupport]:
    """What engines do with a layer of this scheme, in the format compressed-tensors."""
    name = preset_of(scheme)
    ours = [EngineSupport(engine, True, "every preset was read") for engine in (TRANSFORMERS, LIBRARY)]
    if name is None:
        why = "no preset: it was not tried"
        return [EngineSupport(one, None, why) for one in (TRANSFORMERS, LIBRARY, VLLM_CPU, VLLM)]
    reason, where = _REFUSED.get(name), _ELSEWHERE.get(name)
    cpu = EngineSupport(VLLM_CPU, reason is None, reason or "served, and compared with the model in memory")
    other = EngineSupport(VLLM, where is not None, f"by its source: {where}" if where else "it has no kernel")
    return [*ours, cpu, other]


def preset_of(scheme: Scheme) -> str | None:
    """The preset that a scheme is, whatever its group size and observers; None where it is none."""
    wanted = _plain(scheme.weights), _plain(scheme.input_activations)
    for name in preset_names():
        known = preset(name)
        if (_plain(known.weights), _plain(known.input_activations)) == wanted:
            return name
    return None


def _plain(args: QuantizationArgs | None) -> QuantizationArgs | None:
    """Without what an engine does not look at: group sizes that a preset lets be chosen, the observer, the order."""
    if args is None:
        return None
    free = args.strategy == "group" and args.type == "int"
    return evolve(args, observer=None, observer_kwargs={}, actorder=None, **({"group_size": 128} if free else {}))
