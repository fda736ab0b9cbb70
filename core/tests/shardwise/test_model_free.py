"""model_free_ptq: the bytes of oneshot's rounding, file by file, and every fault that this door has elsewhere."""

import json

import pytest
import torch
from checkpoints import config_of, differing, files_of, mixture, randn, same, tensors_of, write

from coldpress import CheckpointError, TargetError, model_free_ptq, oneshot
from coldpress.checkpoint.writer import CheckpointWriter
from coldpress.testing.models import tiny_conv1d, tiny_llama
from coldpress_magnitude import MagnitudePruningModifier
from coldpress_quantization import QuantizationModifier

GROUPED = {"W4A16": 64, "W4A16_ASYM": 64}
SCHEMES = ["W4A16", "W4A16_ASYM", "W8A8", "FP8_BLOCK", "NVFP4A16", "MXFP6A16"]


def rounding(scheme, **settings):
    return QuantizationModifier(scheme=scheme, group_size=GROUPED.get(scheme), ignore=["lm_head"], **settings)


def compressed(source, target, scheme="W4A16", **settings):
    model_free_ptq(source, target, recipe=rounding(scheme), quiet=True, **settings)
    return tensors_of(target)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_are_those_of_oneshot(scheme, folder, tmp_path):
    oneshot(str(folder), rounding(scheme), output_dir=tmp_path / "whole", return_model=False, quiet=True)

    compressed(folder, tmp_path / "shards", scheme)

    assert differing(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "shards")) == []
    whole, shards = config_of(tmp_path / "whole"), config_of(tmp_path / "shards")
    ignored = [set(one["quantization_config"].pop("ignore")) for one in (whole, shards)]
    assert ignored[0] == ignored[1]
    assert whole == shards


@pytest.mark.parametrize("observer", ["mse", "memoryless_minmax"])
def test_every_observer_of_weights_works(observer, folder, tmp_path):
    recipe = rounding("W4A16", weight_observer=observer)
    oneshot(str(folder), recipe, output_dir=tmp_path / "whole", return_model=False, quiet=True)

    model_free_ptq(folder, tmp_path / "shards", recipe=recipe, quiet=True)

    assert differing(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "shards")) == []


def test_pruning_by_magnitude_is_that_of_oneshot(folder, tmp_path):
    recipe = [MagnitudePruningModifier(init_sparsity=0.0, final_sparsity=0.5, ignore=["lm_head"]), rounding("W8A16")]
    recipe[1] = QuantizationModifier(scheme="W8A16", group_size=64, ignore=["lm_head"])
    oneshot(str(folder), recipe, output_dir=tmp_path / "whole", return_model=False, quiet=True)

    model_free_ptq(folder, tmp_path / "shards", recipe=recipe, quiet=True)

    assert differing(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "shards")) == []


def test_turned_layers_are_those_of_oneshot(tmp_path):
    tiny_conv1d().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    oneshot(str(tmp_path / "model"), rounding("W4A16"), output_dir=tmp_path / "whole", return_model=False, quiet=True)

    compressed(tmp_path / "model", tmp_path / "shards")

    assert differing(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "shards")) == []


def test_files_and_their_metadata_are_those_of_the_checkpoint(folder, tmp_path):
    compressed(folder, tmp_path / "out")

    names = {path.name for path in folder.glob("*.safetensors")}
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == names
    before, after = (
        json.loads((one / "model.safetensors.index.json").read_text()) for one in (folder, tmp_path / "out")
    )
    where = {name.removesuffix("weight"): file for name, file in before["weight_map"].items()}
    assert all(where[name[: name.rindex(".") + 1]] == file for name, file in after["weight_map"].items())
    for name in names:
        header = (tmp_path / "out" / name).read_bytes()[8:].split(b"}", 1)[0]
        assert b'"__metadata__":{"format":"pt"' in header


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_byte(workers, folder, tmp_path):
    compressed(folder, tmp_path / "two", "NVFP4A16", max_workers=2)

    compressed(folder, tmp_path / "other", "NVFP4A16", max_workers=workers)

    assert files_of(tmp_path / "two") == files_of(tmp_path / "other")


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on_with_the_same_bytes(kept, folder, tmp_path, monkeypatch):
    compressed(folder, tmp_path / "whole", "NVFP4A16")
    adopt, done = CheckpointWriter.adopt, []

    def stopping(self, *arguments):
        if len(done) == kept:
            raise KeyboardInterrupt
        adopt(self, *arguments)
        done.append(arguments[0])

    monkeypatch.setattr(CheckpointWriter, "adopt", stopping)
    with pytest.raises(KeyboardInterrupt):
        compressed(folder, tmp_path / "out", "NVFP4A16")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(CheckpointWriter, "adopt", lambda *arguments: (done.append(arguments[1]), adopt(*arguments)))

    compressed(folder, tmp_path / "out", "NVFP4A16")

    assert len(done) == len(set(done)) == 4  # none was done twice
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_another_recipe_does_not_go_on(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        adopt = CheckpointWriter.adopt
        patched.setattr(
            CheckpointWriter, "adopt", lambda self, number, *rest: adopt(self, number, *rest) if number == 0 else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            compressed(folder, tmp_path / "out", max_workers=1)

    with pytest.raises(CheckpointError, match="not this one"):
        compressed(folder, tmp_path / "out", "W8A8")


# --- what is a layer


def test_embeddings_heads_routers_and_convolutions_are_left_alone(tmp_path):
    tensors = mixture()
    write(tmp_path / "model", [tensors])

    report = model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="W8A8", quiet=True)

    found = tensors_of(tmp_path / "out")
    spared = ["model.embed_tokens", "lm_head", "model.layers.0.mlp.gate", "model.layers.0.linear_attn.conv1d"]
    assert all(same(found[f"{name}.weight"], tensors[f"{name}.weight"]) for name in spared)
    lines = {line.name.removesuffix(".weight"): line for line in report.layers}
    assert all(lines[name].status == "untouched" and lines[name].reason for name in spared)
    assert {name for name in lines if lines[name].status == "quantized"} == lines.keys() - set(spared)
    assert {"lm_head", "model.layers.0.mlp.gate"} <= set(config_of(tmp_path / "out")["quantization_config"]["ignore"])


@pytest.mark.parametrize("name", ["shared", "cls.predictions.decoder", "input_embeds_layer", "odd", "blocks.0.odd"])
def test_what_has_a_row_for_each_token_outside_of_blocks_is_left_alone(name, tmp_path):
    tensors = {f"{name}.weight": randn(257, 128), "blocks.0.up_proj.weight": randn(64, 128)}
    write(tmp_path / "model", [tensors], {"text_config": {"vocab_size": 257}})

    report = model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="W8A8", quiet=True)

    quantized = {line.name for line in report.layers if line.status == "quantized"}
    assert quantized == {"blocks.0.up_proj", *([name] if name == "blocks.0.odd" else [])}


def test_a_head_that_is_named_is_quantized(tmp_path):
    write(tmp_path / "model", [mixture()])
    scheme = {"targets": ["re:.*lm_head"], "weights": {"num_bits": 8, "strategy": "channel"}}

    model_free_ptq(tmp_path / "model", tmp_path / "out", scheme=scheme, quiet=True)

    assert [name for name in tensors_of(tmp_path / "out") if name.endswith("packed")] == ["lm_head.weight_packed"]


def test_multi_token_prediction_comes_along_unchanged(tmp_path):
    tensors = mixture()
    block = {name.replace("layers.0", "layers.61"): tensor for name, tensor in tensors.items() if "self_attn" in name}
    block["model.layers.61.eh_proj.weight"] = randn(128, 256)
    write(tmp_path / "model", [tensors | block])

    report = model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="W8A8", quiet=True)

    assert (
        differing(block, {name: tensor for name, tensor in tensors_of(tmp_path / "out").items() if name in block}) == []
    )
    assert any("multi-token" in (line.reason or "") for line in report.layers)


# --- what engines fuse


def global_scales(path):
    return {
        name.removesuffix(".weight_global_scale"): float(tensor)
        for name, tensor in tensors_of(path).items()
        if name.endswith("global_scale")
    }


def test_fused_layers_share_a_global_scale_across_shards(tmp_path):
    tensors = mixture()
    q, k, v = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv")
    other = {
        name.replace("layers.0", "layers.1"): tensor * 3 for name, tensor in tensors.items() if "self_attn" in name
    }
    q1 = q.replace("layers.0", "layers.1")
    last = {name: tensors.pop(name) for name in (k, v)}
    write(tmp_path / "model", [tensors | {q1: other.pop(q1)}, last | other])  # two q here, their k and v there
    write(tmp_path / "one", [tensors | {q1: mixture()[q] * 3} | last | other])

    for source in ("model", "one"):
        model_free_ptq(tmp_path / source, tmp_path / f"{source}-out", scheme="NVFP4A16", quiet=True)

    scales = global_scales(tmp_path / "model-out")
    for layer in (0, 1):
        assert len({scales[f"model.layers.{layer}.self_attn.{name}_proj"] for name in "qkv"}) == 1
    assert scales["model.layers.0.self_attn.q_proj"] != scales["model.layers.1.self_attn.q_proj"]
    assert differing(tensors_of(tmp_path / "model-out"), tensors_of(tmp_path / "one-out")) == []


def test_gate_and_up_of_an_expert_share_a_global_scale(tmp_path):
    latent = {f"model.layers.0.self_attn.{n}.weight": randn(64, 128, seed=i) * (i + 1) for i, n in enumerate(LATENT)}
    write(tmp_path / "model", [mixture() | latent])

    model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="NVFP4A16", quiet=True)

    scales = global_scales(tmp_path / "out")
    for expert in range(4):
        prefix = f"model.layers.0.mlp.experts.{expert}"
        assert scales[f"{prefix}.gate_proj"] == scales[f"{prefix}.up_proj"]
    assert len({scales[f"model.layers.0.self_attn.{name}"] for name in LATENT}) == 1


LATENT = ("q_a_proj", "kv_a_proj_with_mqa")


# --- experts in joint tensors


def joint(kind, *, experts=3, hidden=64, width=32):
    """The joint tensors of a mixture as this model type has them, and the matrices that they are made of."""
    gate, up = randn(experts, width, hidden, seed=1), randn(experts, width, hidden, seed=2)
    down = randn(experts, hidden, width, seed=3)
    both = torch.cat((gate, up), dim=1)  # [E, 2M, H]
    if kind == "gpt_oss":
        both = torch.stack((gate, up), dim=2).flatten(1, 2).transpose(1, 2)  # [E, H, 2M], even and odd columns
    elif kind.startswith("llama4"):
        both = both.transpose(1, 2)
    turned = kind == "gpt_oss" or kind.startswith("llama4")
    owner = "model.layers.0.mlp.experts"
    tensors = {f"{owner}.gate_up_proj": both, f"{owner}.down_proj": down.transpose(1, 2) if turned else down}
    matrices = {
        f"{owner}.{number}.{role}.weight": part[number]
        for number in range(experts)
        for role, part in (("gate_proj", gate), ("up_proj", up), ("down_proj", down))
    }
    return tensors, matrices


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "llama4_text"])
def test_joint_experts_become_the_layers_that_they_are(kind, tmp_path):
    tensors, matrices = joint(kind)
    write(tmp_path / "joint", [tensors], {"model_type": kind})
    write(tmp_path / "apart", [matrices], {"model_type": kind})

    for source in ("joint", "apart"):
        model_free_ptq(tmp_path / source, tmp_path / f"{source}-out", scheme="MXFP4", quiet=True)

    assert differing(tensors_of(tmp_path / "joint-out"), tensors_of(tmp_path / "apart-out")) == []


def test_joint_experts_of_an_unknown_kind_are_refused_by_name(tmp_path):
    tensors, _ = joint("gpt_oss")
    write(tmp_path / "model", [tensors | mixture()])

    with pytest.raises(TargetError, match=r"experts\.gate_up_proj: .*not known for this model type(?s:.*)ignore"):
        model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="MXFP4", quiet=True)

    ignore = ["re:.*experts.(gate_up|down)_proj"]
    model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="MXFP4", ignore=ignore, quiet=True)
    assert differing(tensors, {n: t for n, t in tensors_of(tmp_path / "out").items() if n in tensors}) == []


def test_joint_experts_that_are_ignored_stay_joint(tmp_path):
    tensors, _ = joint("qwen3_moe")
    write(tmp_path / "model", [tensors | {"model.layers.0.self_attn.o_proj.weight": randn(64, 64)}])

    model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="MXFP4", ignore=["re:.*experts.*"], quiet=True)

    found = tensors_of(tmp_path / "out")
    assert all(same(found[name], tensor) for name, tensor in tensors.items())


def test_the_output_may_not_be_the_checkpoint(folder):
    with pytest.raises(CheckpointError, match="stays as it is"):
        model_free_ptq(folder, folder, scheme="W8A8", overwrite=True, quiet=True)


def test_a_tiny_llama_is_evaluated_after_it(folder, tmp_path):
    """The output is loaded as any other."""
    from coldpress import load_model

    compressed(folder, tmp_path / "out", "W8A8")

    model = load_model(tmp_path / "out")
    assert type(model).__name__ == type(tiny_llama()).__name__
