"""How two checkpoints differ: a change of one code is one code, and formats that hold the same weights are the same."""

import json
import shutil
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

from coldpress import CheckpointError, oneshot
from coldpress.report.difference import difference_of
from coldpress.report.page.compared import page_of_difference
from coldpress.testing.models import batches, tiny_llama, tiny_tokenizer

RECIPE = "QuantizationModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}"
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("difference") / "model"
    tiny_llama(hidden=64).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(model):
    oneshot(str(model), RECIPE, output_dir=str(model.parent / "w4"), quiet=True)
    return model.parent / "w4"


def by_name(found):
    return {tensor.name: tensor for tensor in found.tensors}


def test_a_checkpoint_is_equal_to_its_copy(quantized, tmp_path):
    found = difference_of(quantized, shutil.copytree(quantized, tmp_path / "copy"))

    assert found.is_equal()
    assert found.counts() == {"equal": len(found.tensors)}
    assert (found.recipe, found.config, set(found.files.values())) == ((), (), {"equal"})


def test_one_changed_code_is_one_changed_code(quantized, tmp_path):
    other = shutil.copytree(quantized, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors[f"{UP}.weight_packed"][0, 0] ^= 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})

    found = difference_of(quantized, other)

    changed = by_name(found)[f"{UP}.weight"]
    assert not found.is_equal()
    assert found.counts()["differs"] == 1
    assert changed.codes_changed == pytest.approx(1 / (64 * 128))
    assert changed.largest == pytest.approx(float(tensors[f"{UP}.weight_scale"][0, 0]), rel=1e-5)


def test_other_scales_of_static_inputs_are_no_equal_checkpoint(model, tmp_path):
    recipe = "QuantizationModifier: {scheme: FP8, ignore: [lm_head]}"
    data = {"dataset": batches(rows=2), "quiet": True}
    oneshot(str(model), recipe, output_dir=str(tmp_path / "fp8"), **data)
    other = shutil.copytree(tmp_path / "fp8", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors[f"{UP}.input_scale"] *= 2
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})

    found = difference_of(tmp_path / "fp8", other)

    assert not found.is_equal()
    assert by_name(found)[f"{UP}.weight"].status == "other input scales"
    assert found.counts()["equal"] == len(found.tensors) - 1
    assert "other input scales" in page_of_difference(found)


def test_beside_its_original_it_is_as_far_as_the_report_says(model, quantized):
    found = difference_of(model, quantized)

    lines = {line["name"]: line for line in json.loads((quantized / "report.json").read_text())["layers"]}
    changed = by_name(found)[f"{UP}.weight"]
    assert changed.schemes[0] is None
    assert changed.schemes[1].startswith("int4 group 32")
    assert changed.error == pytest.approx(lines[UP]["weight_error"], rel=1e-3)
    assert changed.codes_changed is None
    assert by_name(found)["model.embed_tokens.weight"].status == "equal"
    assert found.files["recipe.yaml"] == "only in B"
    assert found.config == ("quantization_config",) or "quantization_config" in found.config
    size = sum(tensor.numel() * tensor.element_size() for tensor in load_file(quantized / "model.safetensors").values())
    assert found.nbytes()[1] == size


def test_what_is_in_one_only_is_named(model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})

    found = by_name(difference_of(model, other))

    assert found["lm_head.weight"].status == "only in A"
    assert found["model.norm.weight"].status == "other shape"
    assert by_name(difference_of(other, model))["lm_head.weight"].status == "only in B"


def test_the_recipes_are_compared_line_by_line(quantized, model, tmp_path):
    oneshot(str(model), RECIPE.replace("32", "64"), output_dir=str(tmp_path / "w4"), quiet=True)

    found = difference_of(quantized, tmp_path / "w4")

    assert any(line.startswith("-") and "group_size: 32" in line for line in found.recipe)
    assert any(line.startswith("+") and "group_size: 64" in line for line in found.recipe)


def test_what_is_no_checkpoint_is_refused(quantized, tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        difference_of(quantized, tmp_path / "nothing")


def test_its_page_has_a_mark_for_each_weight_that_differs(model, quantized):
    found = difference_of(model, quantized)

    root = ElementTree.fromstring(page_of_difference(found))

    classes = [node.get("class", "").split() for node in root.iter()]
    assert sum("mark" in one for one in classes) == sum("cell" in one for one in classes) == found.counts()["differs"]
    equal = ElementTree.fromstring(page_of_difference(difference_of(model, model)))
    assert not [node for node in equal.iter() if node.tag.endswith("svg")]
