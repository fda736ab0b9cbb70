"""What a checkpoint has in its files, and says little of: what it is taken for, and what is refused before any work."""

import json

import pytest
import torch
from checkpoints import config_of, differing, randn, tensors_of, write

from coldpress import CheckpointError, SchemeError, convert, model_free_ptq, oneshot
from coldpress.testing.models import batches, tiny_llama
from coldpress_magnitude import MagnitudePruningModifier
from coldpress_quantization import QuantizationModifier


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


@pytest.fixture
def unsaid(tmp_path):
    """A tiny Llama in float16 whose configuration names no dtype."""
    tiny_llama(hidden=128).half().save_pretrained(tmp_path / "model")
    config = {key: value for key, value in config_of(tmp_path / "model").items() if not key.endswith("dtype")}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return tmp_path / "model"


@pytest.mark.parametrize(
    "recipe",
    [
        QuantizationModifier(scheme="W4A16", group_size=64, ignore=["lm_head"]),
        MagnitudePruningModifier(init_sparsity=0.0, final_sparsity=0.5, ignore=["lm_head"]),
    ],
)
def test_a_dtype_that_the_configuration_does_not_name_is_that_of_the_files(recipe, unsaid, tmp_path):
    oneshot(str(unsaid), recipe, output_dir=tmp_path / "whole", return_model=False, quiet=True)

    model_free_ptq(unsaid, tmp_path / "shards", recipe=recipe, quiet=True)

    assert differing(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "shards")) == []


@pytest.mark.parametrize("form", ["dense", "gptq"])
def test_scales_of_keys_and_values_are_refused_where_the_format_cannot_tell_them(form, tmp_path):
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    recipe = QuantizationModifier(scheme="W4A16", group_size=32, kv_cache_scheme=cache, ignore=["lm_head"])
    model = tiny_llama(hidden=128).half()
    oneshot(model, recipe, dataset=batches(rows=2), output_dir=tmp_path / "model", quiet=True)

    with pytest.raises(SchemeError, match=r"self_attn cannot have the attachment 'kv_cache' in this format"):
        convert(tmp_path / "model", tmp_path / "out", form, quiet=True)
    assert [one.name for one in tmp_path.iterdir()] == ["model"]

    convert(tmp_path / "model", tmp_path / "same", quiet=True)
    before, after = (config_of(tmp_path / name)["quantization_config"] for name in ("model", "same"))
    assert after["kv_cache_scheme"] == before["kv_cache_scheme"]


@pytest.mark.parametrize("inside", [False, True])
def test_quantization_is_written_where_it_was_read(inside, tmp_path):
    write(tmp_path / "model", [{"a.q_proj.weight": randn(64, 64)}])
    convert(tmp_path / "model", tmp_path / "plain", quiet=True)
    assert not any(name.endswith("_config") for name in config_of(tmp_path / "plain"))
    model_free_ptq(tmp_path / "model", tmp_path / "once", scheme="W8A8", quiet=True)
    config = config_of(tmp_path / "once")
    said = config.pop("quantization_config")
    tables = [{"compression_config": said}, {"text_config": {"quantization_config": said}}]
    config |= tables[1] if inside else {**tables[0], "text_config": {"quantization_config": said, "more": 1}}
    (tmp_path / "once" / "config.json").write_text(json.dumps(config))

    convert(tmp_path / "once", tmp_path / "twice", quiet=True)

    found = config_of(tmp_path / "twice")
    place, other = (found["text_config"], found) if inside else (found, found["text_config"])
    assert place["quantization_config"] == said
    assert not {"quantization_config", "compression_config"} & other.keys()
    assert "compression_config" not in place
