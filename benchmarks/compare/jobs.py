"""The jobs of compare.py: which modifiers, with which settings, run on both sides.

A job is data.  The names and settings of the modifiers are the same in both libraries, so one list serves both:
ours gets it as recipe text, the peer's process makes its modifier objects of it.
`peer` stands in for it only where the peer wants other words for the same thing.
This file is read where there is no torch, and imports nothing.
"""

from dataclasses import dataclass, field
from typing import Any

Modifiers = list[tuple[str, dict[str, Any]]]

HEAD = ["re:.*lm_head"]  # the peer's SparseGPTModifier does not understand the bare name
LAYERS = {"targets": ["Linear"], "ignore": HEAD}
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def grouped(num_bits: int, *, symmetric: bool = True) -> dict[str, Any]:
    """Weights with one scale for 64 columns: the width of SmolLM2, 576, is no multiple of 128."""
    return {"num_bits": num_bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 64}


def rowwise(num_bits: int) -> dict[str, Any]:
    """Symmetric weights with one scale for an output channel."""
    return {"num_bits": num_bits, "type": "int", "symmetric": True, "strategy": "channel"}


def scheme(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings that say which layers are quantized, and how."""
    group = {"targets": ["Linear"], "weights": weights} | ({"input_activations": inputs} if inputs else {})
    return {"ignore": HEAD, "config_groups": {"group_0": group}}


def rounding(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Round to nearest."""
    return "QuantizationModifier", scheme(weights, inputs)


def gptq(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """GPTQ with the defaults of both, written out."""
    return "GPTQModifier", {**scheme(weights, inputs), "block_size": 128, "dampening_frac": 0.01, "actorder": "static"}


SPARSEGPT = (
    "SparseGPTModifier",
    {**LAYERS, "sparsity": 0.5, "mask_structure": "2:4", "block_size": 128, "dampening_frac": 0.01},
)
SMOOTHQUANT = ("SmoothQuantModifier", {"smoothing_strength": 0.8})
SPINQUANT = ("SpinQuantModifier", {"rotations": ["R1", "R2"], "transform_type": "random-hadamard"})
TOKENS4 = {**TOKENS, "num_bits": 4}
CACHE4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
AWQ = ("AWQModifier", {"duo_scaling": True, "n_grid": 20})


def autoround(weights: dict[str, Any], *, iters: int, **ours: Any) -> tuple[str, dict[str, Any]]:
    """AutoRound with as many steps on both sides; what else ours is given, the peer has no word for.

    Scales of the peer are signed.
    """
    return "AutoRoundModifier", {**scheme(weights), "iters": iters, "batch_size": 8, **ours}


def preset(name: str, *, iters: int) -> tuple[str, dict[str, Any]]:
    """AutoRound by the name of a scheme."""
    return "AutoRoundModifier", {"ignore": HEAD, "targets": ["Linear"], "scheme": name, "iters": iters, "batch_size": 8}


@dataclass(frozen=True)
class Job:
    """What is compared.

    Attributes:
        title: for the head of the page.
        modifiers: name and settings of each, in the order in which they run.
        peer: the same in the peer's words, where those differ.
        cache: how keys and values are rounded when the result is judged; None leaves them as they are.
        rotated: embeddings and head are rotated too.
    """

    title: str
    modifiers: Modifiers
    peer: Modifiers = field(default_factory=list)
    cache: dict[str, Any] | None = None
    rotated: bool = False

    def sides(self) -> dict[str, Modifiers]:
        """The modifiers of either side."""
        return {"peer": self.peer or self.modifiers, "ours": self.modifiers}

    def inputs(self) -> dict[str, Any] | None:
        """How the inputs of quantized layers are quantized; None when they are not."""
        groups = [settings.get("config_groups", {}).get("group_0", {}) for _, settings in self.modifiers]
        return next((group["input_activations"] for group in groups if "input_activations" in group), None)


JOBS = {
    "rtn-w4a16": Job("round to nearest, 4 bits, groups of 64", [rounding(grouped(4))]),
    "gptq-w4a16": Job("GPTQ, 4 bits, groups of 64", [gptq(grouped(4))]),
    "gptq-w3a16": Job("GPTQ, 3 bits, groups of 64", [gptq(grouped(3))]),
    "gptq-w4a16-channel": Job("GPTQ, 4 bits, one scale a channel", [gptq(rowwise(4))]),
    "sparsegpt-2of4": Job("SparseGPT, 2 of 4", [SPARSEGPT]),
    "sparsegpt-gptq": Job("SparseGPT, 2 of 4, then GPTQ, 4 bits, groups of 64", [SPARSEGPT, gptq(grouped(4))]),
    "smoothquant-gptq-w8a8": Job("SmoothQuant, then GPTQ, W8A8", [SMOOTHQUANT, gptq(rowwise(8), TOKENS)]),
    "smoothquant-rtn-w8a8": Job(
        "SmoothQuant, then round to nearest, W8A8", [SMOOTHQUANT, rounding(rowwise(8), TOKENS)]
    ),
    "awq-w4a16": Job("AWQ, 4 bits, asymmetric, groups of 64", [AWQ, rounding(grouped(4, symmetric=False))]),
    "awq-w4a16-sym": Job("AWQ, 4 bits, symmetric, groups of 64", [AWQ, rounding(grouped(4))]),
    "awq-w3a16": Job("AWQ, 3 bits, asymmetric, groups of 64", [AWQ, rounding(grouped(3, symmetric=False))]),
    "spinquant-rtn-w4a8": Job(
        "SpinQuant, then round, W4A8",
        [SPINQUANT, rounding(rowwise(4), TOKENS)],
        rotated=True,
    ),
    "spinquant-gptq-w4a8": Job(
        "SpinQuant, then GPTQ, W4A8",
        [SPINQUANT, gptq(rowwise(4), TOKENS)],
        rotated=True,
    ),
    "spinquant-rtn-w4a4": Job(
        "SpinQuant, then round, W4A4",
        [SPINQUANT, rounding(rowwise(4), TOKENS4)],
        rotated=True,
    ),
    "spinquant-gptq-w4a4": Job(
        "SpinQuant, then GPTQ, W4A4",
        [SPINQUANT, gptq(rowwise(4), TOKENS4)],
        rotated=True,
    ),
    "spinquant-rtn-w4a4kv4": Job(
        "SpinQuant, then round, W4A4KV4",
        [SPINQUANT, rounding(rowwise(4), TOKENS4)],
        cache=CACHE4,
        rotated=True,
    ),
    "spinquant-gptq-w4a4kv4": Job(
        "SpinQuant, then GPTQ, W4A4KV4",
        [SPINQUANT, gptq(rowwise(4), TOKENS4)],
        cache=CACHE4,
        rotated=True,
    ),
    "spinquant-gptq-w4a16": Job("SpinQuant, then GPTQ, W4A16", [SPINQUANT, gptq(rowwise(4))], rotated=True),
    "autoround-w4a16": Job(
        "AutoRound, 4 bits, groups of 64, 50 steps",
        [autoround(grouped(4), iters=50, signed_scales=True)],
        peer=[autoround(grouped(4), iters=50)],
    ),
    "autoround-w3a16": Job(
        "AutoRound, 3 bits, groups of 64, 50 steps",
        [autoround(grouped(3), iters=50, signed_scales=True)],
        peer=[autoround(grouped(3), iters=50)],
    ),
    "autoround-w2a16": Job(
        "AutoRound, 2 bits, groups of 32, 50 steps",
        [autoround({**grouped(2), "group_size": 32}, iters=50, signed_scales=True, start="rtn")],
        peer=[autoround({**grouped(2), "group_size": 32}, iters=50)],
    ),
    "autoround-mxfp4": Job("AutoRound, MXFP4 weights, 50 steps", [preset("MXFP4A16", iters=50)]),
    "autoround-nvfp4": Job("AutoRound, NVFP4 weights, 50 steps", [preset("NVFP4A16", iters=50)]),
    "awq-gptq-w4a16": Job("AWQ, then GPTQ, 4 bits, groups of 64", [AWQ, gptq(grouped(4))]),
}
