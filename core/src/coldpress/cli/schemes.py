"""`coldpress schemes`: every preset, what it stores and computes with, and which engines were seen to serve it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import asdict, fields

from coldpress.cli.console import out, print_json
from coldpress.cli.option import Json

if TYPE_CHECKING:
    from coldpress.schemes import QuantizationArgs, Scheme

_WIDTH = 4096  # rows and columns of the layer whose bits are counted


def schemes(
    name: Annotated[
        str | None, typer.Argument(help="Show this one in full, and what engines do with it.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the presets that --scheme takes: weights, inputs, bits per weight, and whether vLLM serves them on a CPU.

    coldpress schemes NVFP4
    """
    from coldpress.schemes import preset

    if name is not None:
        _show(name.upper().replace("-", "_"), preset(name), as_json=as_json)
        return
    found = {each: preset(each) for each in _names()}
    if as_json:
        print_json("schemes", {"schemes": [_row(each, scheme) for each, scheme in found.items()]})
        return
    from rich.text import Text

    from coldpress.report.table import grid
    from coldpress.schemes import describe

    rows = [
        (each, words, inputs, f"{_bits(scheme):.3g}", _served(scheme))
        for each, scheme in found.items()
        for words, _, inputs in [describe(scheme).partition(", inputs ")]
    ]
    out().print(grid(("scheme", "weights", "inputs", "bits", "vLLM on a CPU"), rows, numbers=("bits",)))
    out().print(Text("\nbits: of a weight, scales included. `coldpress schemes NAME` shows one in full.", style="dim"))


def _names() -> list[str]:
    from coldpress.registry import available
    from coldpress.schemes.presets import preset_names

    return [*preset_names(), *(plugin.name for plugin in available("presets"))]


def _row(name: str, scheme: "Scheme") -> dict[str, Any]:
    from coldpress.schemes import describe
    from coldpress.schemes.engines import engines_for

    return {
        "name": name,
        "description": describe(scheme),
        "bits_per_weight": _bits(scheme),
        "engines": [asdict(one) for one in engines_for(scheme)],
    }


def _bits(scheme: "Scheme") -> float:
    """Bits of a weight in a wide layer, scales included."""
    import torch

    from coldpress.bases.without_data import stored_nbytes
    from coldpress.stage import find_layers

    linear = torch.nn.Linear(_WIDTH, _WIDTH, bias=False, device="meta", dtype=torch.bfloat16)
    (layer,) = find_layers([("layer", linear)])
    return 8 * stored_nbytes(None, layer, scheme) / _WIDTH**2


def _served(scheme: "Scheme") -> str:
    from coldpress.schemes.engines import VLLM_CPU, engines_for

    found = next((one.loads for one in engines_for(scheme) if one.engine == VLLM_CPU), None)
    return {True: "served", False: "refused", None: "not tried"}[found]


def _show(name: str, scheme: "Scheme", *, as_json: bool) -> None:
    """One scheme: its fields, and what engines do with it."""
    row = _row(name, scheme)
    tensors = {"weights": scheme.weights, "input_activations": scheme.input_activations}
    settings = {key: None if args is None else _settings(args) for key, args in tensors.items()}
    if as_json:
        print_json("scheme", {**row, **settings})
        return
    from coldpress.report.table import facts

    pairs = [("scheme", name), ("in words", row["description"]), ("bits", f"{row['bits_per_weight']:.4g} a weight")]
    pairs += [
        (key, ", ".join(f"{setting}: {value}" for setting, value in found.items()) if found else "as they are")
        for key, found in settings.items()
    ]
    verdicts = {True: "loads it", False: "refuses it", None: "unknown"}
    pairs += [(one["engine"], f"{verdicts[one['loads']]}: {one['why']}") for one in row["engines"]]
    out().print(facts(pairs))


def _settings(args: "QuantizationArgs") -> dict[str, Any]:
    """What is not at its default, as recipes have it, and how many bits of what type."""
    found = {
        field.name: getattr(args, field.name)
        for field in fields(type(args))
        if field.name in ("num_bits", "type") or getattr(args, field.name) not in (field.default, {}, None)
    }
    return {name: value if isinstance(value, (int, str, bool)) else str(value) for name, value in found.items()}
