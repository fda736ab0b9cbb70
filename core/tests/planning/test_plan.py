"""`coldpress.plan`: sizes to the byte, what is held and read, and what is refused, before a run begins."""

import json

import pytest
import torch

import coldpress
from coldpress import CheckpointError, SchemeError, TargetError, oneshot, registry
from coldpress.dataflow.empty import empty_copy
from coldpress.dataflow.partition import partition
from coldpress.planning.forward import forward_of
from coldpress.report.contents import contents_of
from coldpress.stage import find_layers
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama, tiny_tokenizer
from coldpress_gptq import GPTQModifier
from coldpress_quantization import QuantizationModifier

MODELS = {
    "tied": lambda: tiny_llama(dtype=torch.bfloat16, tied=True),
    "conv1d": lambda: tiny_conv1d(dtype=torch.bfloat16, hidden=128),
    "mixture": lambda: tiny_mixture("qwen3_moe"),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder of each model."""
    root = tmp_path_factory.mktemp("planned")
    for name, build in MODELS.items():
        build().save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


def rounding(scheme: str, **settings) -> QuantizationModifier:
    return QuantizationModifier(scheme=scheme, ignore=["lm_head", "re:.*mlp.gate$"], **settings)


def run(folder, modifier, output, **more):
    return oneshot(str(folder), modifier, output_dir=str(output), quiet=True, return_model=False, **more)


CACHE = {"num_bits": 8, "type": "float", "strategy": "attn_head"}


@pytest.mark.parametrize(
    ("name", "modifier", "more"),
    [
        ("tied", rounding("W4A16_ASYM"), {}),
        ("tied", QuantizationModifier(scheme="W8A8"), {}),  # its head is untied
        ("tied", rounding("NVFP4"), {"dataset": batches(rows=2)}),
        ("tied", rounding("FP8", kv_cache_scheme=CACHE), {"dataset": batches(rows=2)}),
        ("tied", rounding("MXFP6A16"), {"format": "dense"}),
        ("conv1d", rounding("W4A16"), {}),
        ("mixture", rounding("FP8_DYNAMIC"), {}),
        ("mixture", rounding("FP8_DYNAMIC"), {"format": "dense"}),
    ],
    ids=lambda value: getattr(value, "scheme", None) if isinstance(value, QuantizationModifier) else None,
)
def test_sizes_are_those_of_the_run_to_the_byte(folders, tmp_path, name, modifier, more):
    planned = coldpress.plan(str(folders / name), modifier, quiet=True, **more)

    run(folders / name, modifier, tmp_path / "out", **more)

    found = contents_of(tmp_path / "out")
    assert planned.after == found.nbytes()
    assert planned.weights == contents_of(folders / name).weights()
    assert planned.files == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))


def test_nothing_is_read_written_or_changed(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("coldpress.models.streaming.WeightStream.read", lambda *_: pytest.fail("weights are read"))
    before = sorted(path for path in tmp_path.rglob("*"))

    coldpress.plan(str(folders / "tied"), rounding("W4A16"), output_dir=str(tmp_path / "out"), quiet=True)

    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_model_in_memory_is_planned_and_stays_as_it_is():
    model = tiny_llama(tied=True)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    planned = coldpress.plan(model, QuantizationModifier(scheme="W8A8"), tokenizer=tiny_tokenizer(), quiet=True)

    assert planned.after < planned.before
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_report_keeps_the_prediction_beside_what_happened(folders, tmp_path):
    run(folders / "tied", rounding("W8A8"), tmp_path / "out")

    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["predicted"]["size"]["bytes_after"] == report["measured"]["bytes_after"]
    assert report["predicted"]["memory"]["host_bytes"] > 0
    assert report["measured"]["host_bytes"] > 0
    assert report["predicted"]["seconds"]["low"] < report["predicted"]["seconds"]["high"]


def test_a_forward_without_data_counts_products_and_shared_inputs():
    model = empty_copy(tiny_llama(hidden=64, layers=2))
    (batch,) = batches(rows=1, length=16)

    found = forward_of(model, partition(model), batch)

    block = model.model.layers[0]
    products = 2 * 16 * sum(p.numel() for p in block.parameters() if p.ndim == 2)
    attention = found.stages["model.layers.0"].flops - products
    assert found.counted
    assert 0 <= attention <= 2 * 2 * 16 * 16 * 64
    named = {name.rpartition(".")[2]: call.input for name, call in found.layers.items() if ".layers.0." in name}
    assert named["q_proj"] == named["k_proj"] == named["v_proj"] != named["o_proj"]
    assert named["gate_proj"] == named["up_proj"] != named["down_proj"]
    assert found.layers["model.layers.0.mlp.down_proj"].tokens == 16


def test_what_earlier_blocks_leave_in_a_cache_is_not_held():
    model = empty_copy(tiny_llama(hidden=64, layers=3))
    (batch,) = batches(rows=1, length=16)

    found = forward_of(model, partition(model), batch)

    first, *others = [found.stages[f"model.layers.{block}"] for block in range(3)]
    assert others == [first, first]
    down = [found.layers[f"model.layers.{block}.mlp.down_proj"].held for block in range(3)]
    assert down == [down[0]] * 3
    assert down[0] >= 3 * 16 * 64 * 4


def test_tensors_that_are_written_as_they_are_take_no_room(folders):
    plan = coldpress.plan(str(folders / "tied"), rounding("W4A16"), quiet=True)

    parts = {stage.name: stage.parts for stage in plan.stages}
    assert "written" not in parts["prologue"]
    assert 0 < parts["model.layers.0"]["written"] < parts["model.layers.0"]["weights"]


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"SmoothQuantModifier": {"smoothing_strength": 0.5}}, {"SmoothQuantModifier": {"smoothing_strength": "auto"}}),
        (
            {"SparseGPTModifier": {"mask_structure": "2:4", "refine_passes": 0}},
            {"SparseGPTModifier": {"mask_structure": "2:4", "refine_passes": 4}},
        ),
    ],
)
def test_what_a_modifier_searches_is_in_its_cost(less, more):
    costs = []
    for (name, settings), *_ in (less.items(), more.items()):
        modifier = registry.find("modifiers", name)(**settings)
        costs.append(modifier.cost(list(find_layers(empty_copy(tiny_llama(hidden=64)).named_modules()))[1:4], 4096))

    assert costs[1].flops > costs[0].flops
    assert costs[1].steps > costs[0].steps


def test_a_router_that_looks_at_values_leaves_shapes_to_go_by():
    model = empty_copy(tiny_mixture("qwen3_moe"))
    (batch,) = batches(rows=1, length=16)

    found = forward_of(model, partition(model), batch)

    assert not found.counted
    assert all(call.tokens == 16 for call in found.layers.values())


def test_gptq_holds_gram_matrices_and_takes_longer_than_rounding(folders):
    data = {"dataset": batches(rows=4, length=32), "quiet": True}
    gptq = coldpress.plan(str(folders / "tied"), GPTQModifier(scheme="W4A16", ignore=["lm_head"]), **data)
    plain = coldpress.plan(str(folders / "tied"), rounding("W4A16"), quiet=True)

    block = next(stage for stage in gptq.stages if stage.name == "model.layers.0")
    assert block.parts["statistics"] >= 4 * 256 * 256  # what down_proj reads
    assert gptq.seconds()[0] > plain.seconds()[0]
    assert gptq.data["samples"] == 4
    assert plain.data is None


def test_what_engines_do_with_it_is_told(folders):
    served = coldpress.plan(str(folders / "tied"), rounding("W4A16"), quiet=True)
    refused = coldpress.plan(str(folders / "tied"), rounding("MXFP4A16"), quiet=True)

    verdicts = [{one.engine: one.verdict for one in plan.engines} for plan in (served, refused)]
    assert [table["vLLM 0.32 on a CPU"] for table in verdicts] == ["loads", "refuses"]


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_what_engines_do_is_told_of_the_format_that_they_were_given(folders, name):
    modifier = rounding("W4A16_ASYM" if name == "awq" else "W4A16", group_size=32)

    alone = coldpress.plan(str(folders / "tied"), modifier, format=name, quiet=True)
    beside = coldpress.plan(str(folders / "tied"), modifier, format=[name, "compressed-tensors"], quiet=True)

    assert alone.engines == ()
    assert beside.engines


def test_layers_of_one_kind_are_one_line_and_rules_without_layers_are_told(folders):
    modifier = QuantizationModifier(scheme="W8A8", ignore=["lm_head", "re:vision_tower.*"])

    planned = coldpress.plan(str(folders / "tied"), modifier, quiet=True)

    (line,) = [kind for kind in planned.kinds if kind.name == "model.layers.*.mlp.down_proj"]
    assert (line.count, line.shape, line.scheme) == (2, (128, 256), "int8 channel, inputs int8 token dynamic")
    assert line.after < line.before
    assert planned.unmatched == (("QuantizationModifier", "re:vision_tower.*"),)
    assert ("lm_head", "ignored by QuantizationModifier") in planned.left_alone


@pytest.mark.parametrize(
    ("modifier", "error"),
    [
        (QuantizationModifier(scheme="W4A16", group_size=96), SchemeError),
        (QuantizationModifier(scheme="W8A8", targets=["Lineal"]), TargetError),
        (QuantizationModifier(scheme={"W8A8": ["re:.*q_proj"], "W4A16": ["re:.*k_proj"]}), SchemeError),
    ],
)
def test_what_could_not_end_well_is_refused(folders, modifier, error):
    with pytest.raises(error):
        coldpress.plan(str(folders / "tied"), modifier, quiet=True)


def test_a_disk_without_room_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())

    with pytest.raises(CheckpointError, match=r"needs .* while it works, and 1 kB are free"):
        coldpress.plan(str(folders / "tied"), rounding("W8A8"), output_dir=str(tmp_path / "out"), quiet=True)


@pytest.mark.parametrize(
    ("first", "second", "more"),
    [
        (rounding("W8A8", targets=["re:.*self_attn.*"]), rounding("W4A16", targets=["re:.*mlp.*"]), {}),
        (rounding("FP8", kv_cache_scheme=CACHE), rounding("W4A16"), {"dataset": batches(rows=2)}),
    ],
)
def test_a_compressed_folder_is_planned(folders, tmp_path, first, second, more, monkeypatch):
    run(folders / "tied", first, tmp_path / "once", **more)
    with monkeypatch.context() as patched:
        patched.setattr("coldpress.checkpoint.shard.read_tensor", lambda *_: pytest.fail("weights are read"))
        planned = coldpress.plan(str(tmp_path / "once"), second, quiet=True)

    run(tmp_path / "once", second, tmp_path / "twice")

    assert planned.before == contents_of(tmp_path / "once").nbytes()
    assert planned.after == contents_of(tmp_path / "twice").nbytes()
    assert planned.host_nbytes() - planned.now > planned.weights * 2  # it is decoded as a whole


def test_a_weight_that_layers_share_counts_once(folders):
    kinds = coldpress.plan(str(folders / "tied"), rounding("W4A16"), quiet=True).kinds

    before = {kind.name: kind.before for kind in kinds}
    assert before["model.embed_tokens"] > 0
    assert before["lm_head"] == 0


@pytest.mark.parametrize(
    "recipe", ["AWQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}", "SmoothQuantModifier: {}"]
)
def test_what_smoothing_collects_counts(folders, recipe):
    found = coldpress.plan(str(folders / "tied"), recipe, dataset=batches(rows=2), quiet=True)
    assert found.peak().parts["statistics"] > 0
