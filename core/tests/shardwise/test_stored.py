"""What a checkpoint has in its files, and says little of: what it is taken for, and what is refused before any work."""

import pytest
import torch
from checkpoints import write

from coldpress import CheckpointError, convert


@pytest.mark.parametrize("kind", ["qwen3_moe", "unheard_of"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_joint_experts_of_codes_without_a_word_in_the_configuration_are_refused(dtype, kind, tmp_path):
    owner, turned = "model.layers.0.mlp.experts", kind == "unheard_of"
    shapes = {"gate_up_proj": (2, 128, 64), "down_proj": (2, 64, 64)}
    tensors = {f"{owner}.{name}_scale": torch.ones(2) for name in shapes}
    for name, (experts, rows, columns) in shapes.items():
        size = (experts, columns, rows) if turned else (experts, rows, columns)
        tensors[f"{owner}.{name}"] = torch.ones(size).to(dtype)
    write(tmp_path / "model", [tensors], {"model_type": kind})

    with pytest.raises(CheckpointError, match=f"has the dtype {str(dtype).removeprefix('torch.')}"):
        convert(tmp_path / "model", tmp_path / "out", "dense", quiet=True)
    assert [one.name for one in tmp_path.iterdir()] == ["model"]
