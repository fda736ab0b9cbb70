"""SmoothQuant and AWQ keep the function of tiny models of many types, without mappings; benchmarks has all types."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

# w, 1 + w, biases, Conv1D, fused qkv, grouped queries, parallel blocks, experts, state spaces, shared blocks
TYPES = ["llama", "gemma2", "gpt2", "opt", "bloom", "falcon", "phi3", "qwen3_moe", "deepseek_v3", "mamba", "zamba2"]
TYPES += ["llama4_text"]  # experts run on zeros for tokens of others


@pytest.mark.parametrize("model_type", TYPES)
def test_the_function_is_kept_and_layers_are_smoothed(model_type):
    smoothing_zoo = pytest.importorskip("smoothing_zoo")

    row = smoothing_zoo.examine(model_type)

    assert "why" not in row, row
    for name in ("SmoothQuantModifier", "AWQModifier"):
        assert row[name]["change"] < 1e-6
        assert row[name]["smoothed"] > 0
