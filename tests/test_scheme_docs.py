"""docs/schemes.md has every preset, in the layout and with the bits that are written."""

import json
import re
from pathlib import Path

import pytest
import torch

from coldpress import preset, preset_names
from coldpress.testing.rounding import rounded_weight
from coldpress_compressed_tensors import CompressedTensorsFormat

TEXT = (Path(__file__).parents[1] / "docs/schemes.md").read_text(encoding="utf-8")
ROWS = {
    name: (layout, float(bits))
    for names, layout, bits in re.findall(r"^\| (`[^|]+`) \|.*\| `([a-z0-9-]+)` \| ([0-9.]+) \|", TEXT, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", names)
}


def test_every_preset_has_a_row_and_no_other():
    assert sorted(ROWS) == sorted(set(preset_names()) - {"UNQUANTIZED"})


@pytest.mark.parametrize("name", ROWS)
def test_layout_and_bits_are_those_that_are_written(name):
    form = CompressedTensorsFormat()
    weight = torch.randn(128, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()

    tensors = form.tensors(rounded_weight(weight, preset(name)))
    (group,) = form.config({"layer": preset(name)}, [])["config_groups"].values()

    large = [tensor for tensor in tensors.values() if tensor.numel() > 2]  # no global scale, no shape
    bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in large) / weight.numel()
    assert group["format"] == ROWS[name][0]
    assert bits == pytest.approx(ROWS[name][1], abs=0.011)


ENGINES = TEXT.partition("## Engines")[2].partition("\n## ")[0]
SERVED = json.loads((Path(__file__).parents[1] / "benchmarks/results/served.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("name", ROWS)
def test_what_is_said_of_vllm_was_measured(name):
    (line,) = [line for line in ENGINES.splitlines() if name in _presets(line)]

    measured = SERVED["W8A8" if name == "INT8" else name]
    said = line.split("|")[2].strip()
    assert said.startswith("served" if "first_layer" in measured else "refused"), said


FORMATS = TEXT.partition("## Formats")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("row", "column", "cases"),
    [
        ("int4, symmetric", 2, ["gptq, int4", "gptq_v2, int4"]),
        ("int4, asymmetric", 2, ["gptq_v2, int4 with zero points"]),
        ("int4, asymmetric", 3, ["awq"]),
        ("int2, int3", 2, ["gptq, int2", "gptq, int3"]),
        ("int8, inputs left alone", 2, ["gptq, int8"]),
    ],
)
def test_what_is_said_of_vllm_and_the_formats_gptq_and_awq_was_measured(row, column, cases):
    (cells,) = [line.strip("| ").split(" | ") for line in FORMATS.splitlines() if line.startswith(f"| {row}")]
    found = cells[column].split("; ")

    for case in cases:
        served = "first_layer" in SERVED[case]
        assert (found[0] == "tested: vLLM") == served
        assert ("vLLM refuses it on a CPU" in found) == (not served)


def _presets(line):
    """Those that the first cell of a row names, ranges included: `W5A16` to `W8A16`."""
    cell = line.split("|")[1] if line.startswith("|") else ""
    names = re.findall(r"`(\w+)`", cell)
    for first, suffix, last in re.findall(r"`W(\d)(A\d+)` to `W(\d)", cell):
        names += [f"W{bits}{suffix}" for bits in range(int(first), int(last) + 1)]
    return names


FAMILIES = sorted((Path(__file__).parents[1] / "docs/schemes").glob("*.md"))


@pytest.mark.parametrize("page", FAMILIES, ids=lambda path: path.stem)
def test_the_numbers_of_a_family_are_in_the_records_that_it_names(page):
    row = r"^\|.*\| ([\d.]+) \| ([\d.]+) \| \[.*\]\((.*)\) \|$"
    found = re.findall(row, page.read_text(encoding="utf-8"), re.MULTILINE)
    lines = {link: (page.parent / link).read_text(encoding="utf-8").splitlines() for _, _, link in found}

    assert len(found) > 3
    assert [
        (perplexity, divergence)
        for perplexity, divergence, link in found
        if not any(f"| {perplexity} | {divergence} " in line for line in lines[link])
    ] == []
