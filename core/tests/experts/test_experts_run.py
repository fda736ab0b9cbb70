"""Mixtures of experts from end to end: compressed, written under the names that engines read, and loaded again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import coldpress
from coldpress.experts import linear_experts, linearize_experts
from coldpress.testing.interrupt import interrupted
from coldpress.testing.mixtures import MIXTURES, tiny_mixture
from coldpress.testing.models import batches, logits

DATA = batches(rows=4)
RECIPE = """
QuantizationModifier:
  scheme: {scheme}
  ignore: [lm_head, "re:.*shared_expert_gate$"]
  group_size: {group}
"""
STATIC_W8A8 = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False},
}


def modifier(scheme: str):
    from coldpress_quantization import QuantizationModifier

    ignore = ["lm_head", "re:.*router$"]
    if scheme == "static":
        return QuantizationModifier(config_groups={"all": STATIC_W8A8}, ignore=ignore)
    return QuantizationModifier(scheme=scheme, ignore=ignore, group_size=32 if scheme == "W4A16" else None)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def report(folder: Path) -> dict[str, dict]:
    return {line["name"]: line for line in json.loads((folder / "report.json").read_text())["layers"]}


def in_a_folder(kind: str, tmp_path: Path, **settings) -> Path:
    tiny_mixture(kind, **settings).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(model, scheme: str, tmp_path: Path, **arguments):
    return coldpress.oneshot(
        model, modifier(scheme), dataset=DATA_LOADER, output_dir=tmp_path / "out", quiet=True, **arguments
    )


DATA_LOADER = torch.utils.data.DataLoader(DATA, batch_size=None)


@pytest.mark.parametrize("scheme", ["W4A16", "FP8_DYNAMIC", "static"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_every_expert_is_compressed_and_comes_back(kind, scheme, tmp_path):
    model = run(tiny_mixture(kind), scheme, tmp_path)

    lines = report(tmp_path / "out")
    experts = [name for name in lines if ".experts." in name and not name.endswith("router")]
    assert len(experts) == sum(3 * one.count for one in linear_experts(model).values())
    assert {lines[name]["status"] for name in experts} == {"quantized"}
    reloaded = coldpress.load_model(tmp_path / "out")
    torch.testing.assert_close(logits(reloaded, DATA), logits(model, DATA), rtol=1e-5, atol=1e-5)


def names_of(layer: str, *suffixes: str) -> set[str]:
    return {f"{layer}.{suffix}" for suffix in suffixes}


PACKED = ("weight_packed", "weight_scale", "weight_shape")


@pytest.mark.parametrize(
    ("kind", "home", "projections", "others"),
    [
        (
            "mixtral",
            "model.layers.1.block_sparse_moe",
            ("w1", "w2", "w3"),
            {"model.layers.1.block_sparse_moe.gate.weight"},
        ),
        (
            "qwen3_moe",
            "model.layers.1.mlp",
            ("gate_proj", "up_proj", "down_proj"),
            {"model.layers.1.mlp.gate.weight"},
        ),
        (
            "deepseek_v3",
            "model.layers.1.mlp",
            ("gate_proj", "up_proj", "down_proj"),
            {
                "model.layers.1.mlp.gate.weight",
                "model.layers.1.mlp.gate.e_score_correction_bias",
                *names_of("model.layers.1.mlp.shared_experts.gate_proj", *PACKED),
                *names_of("model.layers.1.mlp.shared_experts.up_proj", *PACKED),
                *names_of("model.layers.1.mlp.shared_experts.down_proj", *PACKED),
            },
        ),
    ],
)
def test_names_on_disk_are_those_that_vllm_reads(kind, home, projections, others, tmp_path):
    run(tiny_mixture(kind), "W4A16", tmp_path)

    written = {name for name in tensors(tmp_path / "out") if name.startswith(f"{home}.")}

    experts = {f"{home}.experts.{number}.{one}" for number in range(4) for one in projections}
    assert written == others.union(*(names_of(layer, *PACKED) for layer in experts))


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4", "granitemoe"])
def test_experts_that_are_fused_everywhere_are_written_one_by_one(kind, tmp_path):
    model = run(tiny_mixture(kind), "W4A16", tmp_path)
    home = next(iter(linear_experts(model)))

    written = set(tensors(tmp_path / "out"))

    assert names_of(f"{home}.3.up_proj", *PACKED) <= written
    assert not any(name.startswith(f"{home}.gate_up") for name in written)


def test_the_configuration_names_layers_as_they_are_on_disk(tmp_path):
    coldpress.oneshot(
        tiny_mixture("mixtral"),
        RECIPE.format(scheme="W4A16", group=32).replace("ignore: [", 'targets: ["re:.*mlp.experts.*"]\n  ignore: ['),
        output_dir=tmp_path / "out",
        quiet=True,
    )

    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]

    (group,) = config["config_groups"].values()
    assert "model.layers.0.block_sparse_moe.experts.3.w2" in group["targets"]
    assert {"model.layers.1.block_sparse_moe.gate", "lm_head", "model.layers.0.self_attn.q_proj"} <= set(
        config["ignore"]
    )


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_dense_checkpoint_is_loaded_by_transformers(kind, tmp_path):
    model = run(tiny_mixture(kind), "W4A16", tmp_path, save_compressed=False)

    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")

    torch.testing.assert_close(logits(reloaded, DATA), logits(model, DATA), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MIXTURES)
def test_saving_later_writes_what_transformers_loads(kind, tmp_path):
    model = coldpress.oneshot(tiny_mixture(kind), modifier("W4A16"), quiet=True)
    model.save_pretrained(tmp_path / "dense", save_compressed=False)
    model.save_pretrained(tmp_path / "compressed")

    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    compressed = coldpress.load_model(tmp_path / "compressed")

    torch.testing.assert_close(logits(dense, DATA), logits(model, DATA), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(compressed, DATA), logits(model, DATA), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pipeline", ["basic", "sequential", "layer_sequential"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_pipelines_work_on_mixtures(kind, pipeline, tmp_path):
    run(tiny_mixture(kind), "static", tmp_path, pipeline=pipeline)

    lines = report(tmp_path / "out").values()
    assert {line["notes"]["tokens"] for line in lines if ".experts." in line["name"]} == {64}


def test_weights_that_are_streamed_give_the_same_bytes(tmp_path):
    folder = in_a_folder("mixtral", tmp_path)
    run(str(folder), "static", tmp_path / "streamed", stream_weights=True)
    run(str(folder), "static", tmp_path / "whole", stream_weights=False)

    streamed, whole = tensors(tmp_path / "streamed/out"), tensors(tmp_path / "whole/out")

    assert streamed.keys() == whole.keys()
    assert all(torch.equal(streamed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_a_folder_is_compressed_as_its_model_is(kind, tmp_path):
    folder = in_a_folder(kind, tmp_path)
    from_folder = run(str(folder), "W4A16", tmp_path / "folder")
    in_memory = run(tiny_mixture(kind), "W4A16", tmp_path / "memory")

    torch.testing.assert_close(logits(from_folder, DATA), logits(in_memory, DATA), rtol=1e-5, atol=1e-5)


def starved(kind: str = "mixtral"):
    """A mixture whose first block never sends a token to expert 3."""
    model = tiny_mixture(kind)
    gate = model.model.layers[0].mlp.gate
    with torch.no_grad():
        gate.weight[3] = 0
    original = gate.forward

    def forward(hidden_states):
        scores, weights, index = original(hidden_states)
        return scores, weights, torch.where(index == 3, (index + 1) % 3, index)

    gate.forward = forward
    return model


def test_an_expert_that_sees_no_token_takes_its_scale_from_the_others_and_says_so(tmp_path):
    run(starved(), "static", tmp_path, moe_calibrate_all_experts=False)

    lines = report(tmp_path / "out")
    home = "model.layers.0.mlp.experts"
    for projection in ("gate_proj", "up_proj", "down_proj"):
        line = lines[f"{home}.3.{projection}"]
        assert (line["status"], line["notes"]["tokens"], line["notes"]["few_tokens"]) == ("fallback", 0, True)
        assert "no token" in line["reason"]
    written = tensors(tmp_path / "out")
    scales = [written[f"model.layers.0.block_sparse_moe.experts.{i}.w2.input_scale"] for i in range(4)]
    assert torch.equal(scales[3], torch.stack(scales[:3]).amax(dim=0))
    assert all(tensor.isfinite().all() for tensor in written.values())


def test_with_all_experts_calibrated_none_is_starved(tmp_path):
    run(starved(), "static", tmp_path)

    lines = report(tmp_path / "out")
    assert lines["model.layers.0.mlp.experts.3.up_proj"]["notes"] == {"tokens": 64, "few_tokens": False}


def test_experts_see_only_their_tokens_when_told_so(tmp_path):
    run(tiny_mixture("mixtral"), "static", tmp_path, moe_calibrate_all_experts=False)

    lines = report(tmp_path / "out")
    seen = [lines[f"model.layers.0.mlp.experts.{number}.up_proj"]["notes"]["tokens"] for number in range(4)]
    assert sum(seen) == 2 * 64
    assert max(seen) < 64


def few_tokens(tmp_path, modifier, **settings):
    coldpress.oneshot(
        tiny_mixture("mixtral"),
        modifier,
        dataset=DATA_LOADER,
        output_dir=tmp_path / "out",
        quiet=True,
        moe_calibrate_all_experts=False,
        **settings,
    )
    return {name: line for name, line in report(tmp_path / "out").items() if ".experts." in name}


def test_what_few_tokens_are_is_a_setting(tmp_path):
    lines = few_tokens(tmp_path, modifier("static"), moe_min_tokens=1)

    assert not any(line["notes"]["few_tokens"] for line in lines.values())


def test_experts_that_saw_few_tokens_are_rounded_where_that_is_asked(tmp_path):
    from coldpress_gptq import GPTQModifier

    steps = GPTQModifier(scheme="W4A16", group_size=32, ignore=["lm_head"])
    lines = few_tokens(tmp_path, steps, moe_min_tokens=32, moe_few_tokens="round")

    counts = {name: line["notes"]["tokens"] for name, line in lines.items()}
    assert min(counts.values()) < 32 <= max(counts.values())
    for name, line in lines.items():
        assert line["status"] == ("fallback" if counts[name] < 32 else "quantized"), name
        if 0 < counts[name] < 32:
            reason = f"{counts[name]} tokens of the calibration data, fewer than 32, reached it"
            assert line["reason"] == f"rounded to nearest: {reason}"


def test_static_inputs_of_experts_that_saw_few_tokens_are_as_wide_as_those_of_others(tmp_path):
    lines = few_tokens(tmp_path, modifier("static"), moe_min_tokens=32, moe_few_tokens="round")

    few = [line for line in lines.values() if line["notes"]["tokens"] < 32]
    assert few
    assert all(line["status"] == "fallback" and "the widest of the other experts" in line["reason"] for line in few)


def test_more_data_are_called_for_where_that_is_asked(tmp_path):
    with pytest.raises(
        coldpress.CalibrationError, match=r"fewer tokens than moe_min_tokens=1000, .*times as much data"
    ):
        few_tokens(tmp_path, modifier("static"), moe_min_tokens=1000, moe_few_tokens="refuse")

    assert not (tmp_path / "out").exists()


def test_padding_is_no_token_of_an_expert(tmp_path):
    rows = batches(rows=4, batch_size=2)
    for batch in rows:
        batch["attention_mask"][1, 10:] = 0
    loader = torch.utils.data.DataLoader(rows, batch_size=None)
    coldpress.oneshot(
        tiny_mixture("mixtral"),
        modifier("static"),
        dataset=loader,
        output_dir=tmp_path / "out",
        quiet=True,
        moe_calibrate_all_experts=False,
    )

    lines = report(tmp_path / "out")
    for projection in ("up_proj", "down_proj"):
        names = [f"model.layers.0.mlp.experts.{number}.{projection}" for number in range(4)]
        assert sum(lines[name]["notes"]["tokens"] for name in names) == 2 * (64 - 12)


def test_what_reaches_experts_of_llama4_is_counted(tmp_path):
    run(tiny_mixture("llama4"), "static", tmp_path)

    lines = report(tmp_path / "out")
    seen = [lines[f"model.layers.0.feed_forward.experts.{i}.up_proj"]["notes"]["tokens"] for i in range(4)]
    assert sum(seen) == 64


def test_linear_experts_stay_as_they_are_in_the_model_that_is_returned():
    model = coldpress.oneshot(tiny_mixture("olmoe"), modifier("W4A16"), quiet=True)

    assert len(linear_experts(model)) == 2
    assert not linearize_experts(model).replaced


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_transformers_loads_what_is_compressed_under_names_that_it_knows(kind, tmp_path):
    model = run(tiny_mixture(kind, dtype=torch.bfloat16), "W4A16", tmp_path)

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")

    torch.testing.assert_close(logits(theirs, DATA), logits(model, DATA), rtol=0, atol=1e-2)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(kind, dense, tmp_path):
    run(tiny_mixture(kind), "W4A16", tmp_path / "whole", save_compressed=not dense, pipeline="sequential")
    with interrupted():
        run(tiny_mixture(kind), "W4A16", tmp_path / "halved", save_compressed=not dense, pipeline="sequential")

    run(tiny_mixture(kind), "W4A16", tmp_path / "halved", save_compressed=not dense, pipeline="sequential")

    whole, halved = tensors(tmp_path / "whole/out"), tensors(tmp_path / "halved/out")
    assert whole.keys() == halved.keys()
    assert all(torch.equal(whole[name], halved[name]) for name in whole)


class Unknown(torch.nn.Module):
    """Experts whose arguments nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = torch.nn.Parameter(torch.randn(4, 512, 64) / 8)
        self.down_proj = torch.nn.Parameter(torch.randn(4, 64, 512) / 8)

    def forward(self, x, scale, shift, power):
        return x


def with_unknown_experts(*, heavy: bool):
    model = tiny_mixture("olmoe")
    for block in model.model.layers if heavy else ():
        block.unknown = Unknown()
    if not heavy:
        model.model.unknown = Unknown()
        model.model.unknown.up_proj = torch.nn.Parameter(torch.randn(2, 8, 64))
        model.model.unknown.down_proj = torch.nn.Parameter(torch.randn(2, 64, 8))
    return model


def test_many_weights_that_cannot_be_split_are_refused_by_name():
    with pytest.raises(coldpress.ModelError, match=r"model\.layers\.0\.unknown.*4 arguments.*ignore=\['Unknown'\]"):
        coldpress.oneshot(with_unknown_experts(heavy=True), modifier("W4A16"), quiet=True)


def test_weights_that_cannot_be_split_and_are_ignored_have_a_line_in_the_report(tmp_path):
    recipe = RECIPE.format(scheme="W4A16", group=32).replace("[lm_head", "[lm_head, Unknown")
    coldpress.oneshot(with_unknown_experts(heavy=True), recipe, output_dir=tmp_path / "out", quiet=True)

    line = report(tmp_path / "out")["model.layers.1.unknown"]
    assert (line["kind"], line["status"]) == ("Unknown", "untouched")
    assert "cannot be split" in line["reason"]


def test_few_weights_that_cannot_be_split_have_a_line_in_the_report(tmp_path, caplog):
    coldpress.oneshot(with_unknown_experts(heavy=False), modifier("W4A16"), output_dir=tmp_path / "out", quiet=True)

    assert report(tmp_path / "out")["model.unknown"]["status"] == "untouched"
    assert "model.unknown stays as it is" in caplog.text
