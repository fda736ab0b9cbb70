"""Real vLLM, in its own virtual environment, says of our checkpoints of SmolLM2 what our model in memory says.

The cases are those of benchmarks/served.py, which also tells why there are two distances; its table is in
benchmarks/results/served.md.  Those that are selected are served together, a process of vLLM for six checkpoints.
CI serves the cases of `QUICK`; `make test-vllm` all of them.
"""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import served

from coldpress import preset_names

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

QUICK = ("W4A16", "W4A16, signed scales", "W8A8", "FP8_DYNAMIC", "NVFP4", "KV cache in float8")
# A part of what vLLM says, also where its emulation is offered.
REFUSED = {
    "W4AFP8": "No compressed-tensors compatible scheme was found",
    "FP8": "static_scaled_fp8_quant() expected at most 0 argument(s)",
    "float8, static inputs, a scale a channel": "narrow() cannot be applied to a 0-dim tensor",
    "FP8_BLOCK": "requires AMX tile support",
    "NVFP4A16": "Marlin FP4 not available",
    **dict.fromkeys(("MXFP4", "MXFP4A16", "MXFP4XFP8"), "amd-quark package not available"),
    **dict.fromkeys(("MXFP6A16", "MXFP6A8"), "Only num_bits in (8) are supported"),
    **dict.fromkeys(("W2A16", "W3A16", "W5A16", "W6A16", "W7A16", "W8A16"), "not supported by CPUWNA16"),
    **dict.fromkeys(("W2A8", "W3A8", "W5A8", "W6A8", "W7A8", "W2A4", "W3A4"), "not supported by CPUWNA16"),
    "float8 weights alone": "Failed to find a kernel that can implement the ScaledMM linear layer",
    "gptq_v2, int4 with zero points": "Unsupported quantization config: bits=4, sym=False",
    "gptq, int2": "Unsupported quantization config: bits=2, sym=True",
    "gptq, int3": "Unsupported quantization config: bits=3, sym=True",
    "gptq, int8": "Marlin does not support weight_bits = uint8b128",
    "KV cache in int8": "Currently supported kv cache quantization is num_bits=8, type=float",
}
FIRST_LAYER = {"float32": 1e-3, "float16": 0.02}  # bounds of the median difference of the first layer
WHOLE = {"float32": 1e-3, "float16": 0.05}  # of the mean difference of the whole model, beside twice the noise
# Prompts that go on with the expected word, where rounding to nearest has lost some: in our model as well.
EXPECTED = {
    **dict.fromkeys(("W4A8 in int-quantized", "int8, static inputs", "int8, static asymmetric inputs"), 2),
    "awq, one scale a row": 1,
}


def slow_unless_quick(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


SERVED = [name for name in served.CASES if name not in REFUSED]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    assert served.PYTHON.exists(), "`make test-vllm` creates the environment that this test needs"
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="session")
def tokens():
    return served.held_out()


@pytest.fixture(scope="session")
def lines(request, home, tokens):
    """What served.py finds of every case that a selected test asks for."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    names = {call.params["name"] for call in calls if call is not None and "name" in call.params}
    found = served.first_layers([name for name in served.CASES if name in names], tokens, home)
    served.whole_models(found, tokens, home)
    return found


def test_every_preset_is_a_case():
    assert set(preset_names()) - {"UNQUANTIZED", "INT8"} <= set(served.CASES)  # INT8 is W8A8


@pytest.mark.parametrize("name", slow_unless_quick(SERVED))
def test_the_first_layer_says_what_ours_says(name, lines):
    assert "first_layer" in lines[name], lines[name]
    assert lines[name]["first_layer"] < FIRST_LAYER[served.CASES[name].dtype]


@pytest.mark.parametrize("name", slow_unless_quick(SERVED))
def test_the_whole_model_is_as_far_from_ours_as_ours_from_itself(name, lines):
    line = lines[name]
    assert line["distance"] < 2 * line["noise"] + WHOLE[served.CASES[name].dtype]
    assert line["expected"] == EXPECTED.get(name, len(served.PROMPTS)), line["texts"]
    assert name not in EXPECTED or line["expected_of_ours"] == line["expected"], line["texts"]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_vllm_refuses_it_refuses_in_these_words(name, lines):
    said = [lines[name][key] for key in ("refused", "refused_emulated") if key in lines[name]]
    assert len(said) == 1 + served.CASES[name].emulate
    assert REFUSED[name] in said[-1]


# Case, tensor of the first layer, and what is done to it; vLLM serves it without complaint.
CORRUPTIONS = {
    "swapped nibbles": (
        "W4A16",
        "mlp.down_proj.weight_packed",
        lambda x: x.view(torch.uint8) // 16 + x.view(torch.uint8) % 16 * 16,
    ),
    "a scale of weights 10 % too large": ("W4A16", "mlp.up_proj.weight_scale", lambda x: x * 1.1),
    "scales of the wrong rows": ("W8A8", "self_attn.k_proj.weight_scale", lambda x: x.roll(1, dims=0)),
    "a scale of inputs 2 % too large": ("int8, static inputs", "mlp.down_proj.input_scale", lambda x: x * 1.02),
    "swapped float4": ("NVFP4", "mlp.down_proj.weight_packed", lambda x: x // 16 + x % 16 * 16),
    "a global scale 2 % too large": ("NVFP4", "mlp.down_proj.weight_global_scale", lambda x: x * 1.02),
    "an exponent too large": ("MXFP8A16", "self_attn.o_proj.weight_scale", lambda x: x + 1),
    "a scale of the cache 30 % too large": ("KV cache in float8", "self_attn.v_scale", lambda x: x * 1.3),
}


def test_a_corrupted_tensor_breaks_the_bound(home, tokens):
    requests, references = [], []
    for number, (name, part, corrupt) in enumerate(CORRUPTIONS.values()):
        case = served.CASES[name]
        folder = served.compress(case, home / f"sound-{number}", base=served.source(home, wide=case.wide, layers=1))
        references.append(served.reference(folder, tokens, case))
        broken = shutil.copytree(folder, home / f"broken-{number}")
        tensors = load_file(broken / "model.safetensors")
        full = f"model.layers.0.{part}"
        tensors[full] = corrupt(tensors[full]).view(tensors[full].dtype).reshape(tensors[full].shape).contiguous()
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
        requests.append(served.request(broken, tokens, dtype=case.dtype, emulate=case.emulate))

    answers = served.ask(requests)

    for kind, answer, reference in zip(CORRUPTIONS, answers, references, strict=True):
        bound = FIRST_LAYER[served.CASES[CORRUPTIONS[kind][0]].dtype]
        assert (torch.tensor(answer["logprobs"]) - reference).abs().median() > 2 * bound, kind
