"""Real vLLM, in its own virtual environment, loads our checkpoints of SmolLM2 and knows the capital of France."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm/bin/python"
PROMPT = "The capital of France is"

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def serve(folder: Path, answer: Path) -> str:
    """What vLLM says after the prompt, greedily."""
    assert PYTHON.exists(), "`make test-vllm` creates the environment that this test needs"
    request = {"model": str(folder), "prompt": PROMPT, "max_tokens": 12}
    surroundings = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [str(PYTHON), str(Path(__file__).with_name("serve.py")), str(answer)]
    run = subprocess.run(command, input=json.dumps(request), env=surroundings, capture_output=True, text=True)
    assert run.returncode == 0, f"vLLM failed:\n{run.stdout[-4000:]}\n{run.stderr[-4000:]}"
    return json.loads(answer.read_text(encoding="utf-8"))["text"]


@pytest.mark.parametrize(
    ("scheme", "group_size"),
    [("W4A16", 64), ("W8A8", None), ("FP8_DYNAMIC", None)],
    ids=["W4A16-g64", "W8A8", "FP8_DYNAMIC"],
)
def test_vllm_serves_what_we_compressed(scheme, group_size, tmp_path):
    from coldpress import oneshot
    from coldpress_quantization import QuantizationModifier

    recipe = QuantizationModifier(scheme=scheme, group_size=group_size, ignore=["lm_head"])
    oneshot("smollm2", recipe, precision="bfloat16", output_dir=str(tmp_path / "checkpoint"))

    text = serve(tmp_path / "checkpoint", tmp_path / "answer.json")

    assert "Paris" in text
