"""`coldpress.plan(model_free=True)`: sizes to the byte, of checkpoints of every kind, and nothing written."""

import json

import pytest
import torch

import coldpress
from coldpress import ArgumentError, CheckpointError, convert, model_free_ptq, oneshot
from coldpress.report.contents import contents_of
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import tiny_conv1d, tiny_llama
from coldpress_quantization import QuantizationModifier

MODELS = {
    "tied": lambda: tiny_llama(dtype=torch.bfloat16, tied=True),
    "conv1d": lambda: tiny_conv1d(dtype=torch.bfloat16, hidden=128),
    "mixture": lambda: tiny_mixture("qwen3_moe"),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder of each model, in files of their own sizes, and one that is compressed."""
    root = tmp_path_factory.mktemp("planned-free")
    for name, build in MODELS.items():
        build().save_pretrained(root / name, max_shard_size="300KB")
    recipe = rounding("W4A16", group_size=32, targets=["re:.*self_attn.*"])
    oneshot(str(root / "tied"), recipe, output_dir=root / "compressed", return_model=False, quiet=True)
    return root


def rounding(scheme: str, **settings) -> QuantizationModifier:
    return QuantizationModifier(scheme=scheme, ignore=["lm_head", "re:.*mlp.gate$"], **settings)


@pytest.mark.parametrize(
    ("name", "recipe", "form"),
    [
        ("tied", rounding("W4A16_ASYM"), None),
        ("tied", rounding("NVFP4A16"), None),
        ("tied", rounding("W4A16"), "gptq"),
        ("conv1d", rounding("W4A16"), None),
        ("mixture", rounding("FP8_DYNAMIC", targets=["re:.*self_attn.*"]), None),  # its experts stay joint
        ("mixture", rounding("MXFP4"), None),
        ("compressed", rounding("W8A8", targets=["re:.*mlp.*"]), None),
        ("compressed", rounding("W8A8"), None),
        ("compressed", None, "dense"),
    ],
)
def test_sizes_are_those_of_the_run_to_the_byte(folders, tmp_path, name, recipe, form):
    planned = coldpress.plan(str(folders / name), recipe, model_free=True, format=form)

    if recipe is None:
        report = convert(folders / name, tmp_path / "out", form, quiet=True)
    else:
        report = model_free_ptq(folders / name, tmp_path / "out", recipe=recipe, format=form, quiet=True)

    found = contents_of(tmp_path / "out")
    assert planned.after == found.nbytes() == report.predicted["size"]["bytes_after"] == report.measured["bytes_after"]
    assert planned.files == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert planned.before == contents_of(folders / name).nbytes()
    assert sum(kind.after for kind in planned.kinds) <= planned.after
    told = {line.name for line in report.layers if line.status == "untouched"}
    assert {layer for layer, _ in planned.left_alone} == told


def test_nothing_is_read_or_written(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("coldpress.checkpoint.reader.CheckpointReader.read", lambda *_: pytest.fail("weights are read"))

    coldpress.plan(str(folders / "tied"), rounding("W8A8"), model_free=True, output_dir=tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


def test_more_workers_hold_more(folders):
    one, three = (
        coldpress.plan(str(folders / "mixture"), rounding("W8A8"), model_free=True, max_workers=workers)
        for workers in (1, 3)
    )

    assert one.peak().host <= three.peak().host <= 3 * one.peak().host
    assert one.after == three.after


def test_a_plan_that_could_not_end_well_is_refused(folders, tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match="'dataset' is no argument of a plan with model_free=True"):
        coldpress.plan(str(folders / "tied"), rounding("W8A8"), model_free=True, dataset=[])
    with pytest.raises(coldpress.ModelError, match="is not there"):
        coldpress.plan(str(tmp_path / "no" / "model" / "here"), rounding("W8A8"), model_free=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(CheckpointError, match=r"needs .* while it works, and 1 kB are free"):
        coldpress.plan(str(folders / "tied"), rounding("W8A8"), model_free=True, output_dir=tmp_path / "out")


def test_the_report_has_what_was_planned(folders, tmp_path):
    model_free_ptq(folders / "tied", tmp_path / "out", recipe=rounding("W8A8"), quiet=True)

    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["predicted"]["size"]["bytes_after"] == report["measured"]["bytes_after"]
    files = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert {stage["name"] for stage in report["predicted"]["stages"]} == files
    assert report["measured"]["seconds"] > 0
