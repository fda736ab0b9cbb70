"""`transform_config`: online rotations on disk and back, by us and by the library, and what is refused."""

import json

import pytest
import torch
from compressed_tensors.transform import TransformConfig
from compressed_tensors.transform.utils.matrix import apply_transform_weight
from safetensors.torch import load_file

from coldpress import CheckpointError, SchemeError, convert, load_model, model_free_ptq, oneshot
from coldpress.attachment import attach
from coldpress.numerics import random_orthogonal
from coldpress.plugin import Attached, AttentionRotation, InputRotation
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress_compressed_tensors import CompressedTensorsFormat
from coldpress_compressed_tensors.transforms import read_transforms, rotation_tensors, write_transforms

LAYER = "model.layers.0.mlp.down_proj"
FORM = CompressedTensorsFormat()


def rotated(folder, *settings):
    """A model rotated online and written; its logits, and those of what is read again."""
    model = tiny_llama()
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    recipe = json.dumps({"modifiers": [{"QuIPModifier": one} for one in settings]})
    oneshot(str(folder / "model"), recipe, output_dir=str(folder / "out"), quiet=True)
    data = batches(rows=2)
    return logits(model, data), logits(load_model(str(folder / "out"), device="cpu"), data)


ATTENTION, MLP = {"targets": ["re:.*self_attn.*"]}, {"targets": ["re:.*mlp.*"]}


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ([{"rotations": ["v"], "transform_type": "hadamard"}], ["v"]),
        ([{"rotations": ["v", "u"], "transform_type": "random-hadamard", "transform_block_size": 32}], ["u", "v"]),
        ([{**ATTENTION, "transform_block_size": 32}, {**MLP, "transform_block_size": 64}], ["v", "v_1"]),
        ([{**ATTENTION, "transform_type": "hadamard"}, MLP], ["v", "v_1"]),
        ([ATTENTION, MLP], ["v"]),
    ],
    ids=str,
)
def test_what_is_read_again_says_what_the_model_says(tmp_path, settings, groups):
    before, after = rotated(tmp_path, *settings)

    assert (before - after).norm() < 1e-5 * before.norm()
    table = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["transform_config"]
    assert sorted(TransformConfig.model_validate(table).config_groups) == groups


def test_the_library_computes_with_the_stored_matrix_what_we_do(tmp_path):
    rotated(tmp_path, {"rotations": ["v"], "transform_block_size": 32})
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    names = [name for name in tensors if ".v_input" in name]
    matrix, online = tensors[names[0]], InputRotation(group="v", block_size=32, transform_type="random-hadamard")
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))

    theirs = apply_transform_weight(matrix.float(), x, "input", torch.nn.Linear) / 32**0.5

    assert names == ["model.layers.0.self_attn.q_proj.v_input.weight"]
    assert matrix.dtype == torch.bfloat16
    torch.testing.assert_close(theirs, online.inputs(torch.nn.Linear(128, 1), x))


def test_rotations_that_were_read_are_written_again(tmp_path):
    rotated(tmp_path, {"rotations": ["v", "u"], "transform_type": "random-hadamard", "transform_block_size": 32})
    model, data = load_model(str(tmp_path / "out"), device="cpu"), batches(rows=2)
    recipe = json.dumps({"modifiers": [{"QuantizationModifier": {"scheme": "W8A16", "ignore": ["lm_head"]}}]})

    oneshot(model, recipe, tokenizer=tiny_tokenizer(), output_dir=str(tmp_path / "again"), quiet=True)

    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert report["predicted"]["size"]["bytes_after"] == report["measured"]["bytes_after"]
    again = load_model(str(tmp_path / "again"), device="cpu")
    torch.testing.assert_close(logits(again, data), logits(model, data))
    matrices = [module.v_input for module in again.modules() if hasattr(module, "v_input")]
    assert all(matrix is matrices[0] for matrix in matrices[1:])


def test_a_model_in_memory_is_saved_with_its_matrices(tmp_path):
    model, data = tiny_llama(), batches(rows=2)
    oneshot(model, json.dumps({"modifiers": [{"QuIPModifier": {"transform_type": "random-hadamard"}}]}), quiet=True)

    model.save_pretrained(tmp_path / "saved")

    found = logits(load_model(str(tmp_path / "saved"), device="cpu"), data)
    torch.testing.assert_close(found, logits(model, data))


@pytest.mark.parametrize("kind", ["hadamard", "random-hadamard"])
@pytest.mark.parametrize("targets", [None, ["Linear"], ["re:.*_proj"]], ids=str)
def test_doors_without_a_forward_refuse_what_needs_one(tmp_path, kind, targets):
    """Weights alone are not the model, however its configuration names the layers."""
    rotated(tmp_path, {"rotations": ["v"], "transform_type": kind})
    folder, config = str(tmp_path / "out"), tmp_path / "out" / "config.json"
    table = json.loads(config.read_text())
    for item in table["quantization_config"]["transform_config"]["config_groups"]["v"]["apply"]:
        item["targets"] = targets or item["targets"]
    config.write_text(json.dumps(table))

    with pytest.raises(CheckpointError, match="acts on the forward of a model: use oneshot"):
        convert(folder, str(tmp_path / "dense"), to="dense")
    with pytest.raises(CheckpointError, match="acts on the forward of a model: use oneshot"):
        model_free_ptq(folder, str(tmp_path / "rounded"), scheme="W8A16")


def test_stored_matrices_of_one_group_that_differ_are_stored_apart():
    first, second = torch.ones(4, 4), -torch.ones(4, 4)
    attached = [
        Attached(name, ("Linear",), InputRotation(group="R4", stored=True), {"weight": (8, 4)}, {"R4_input": matrix})
        for name, matrix in (("a", first), ("b", second), ("c", first.clone()))
    ]

    tensors, table = rotation_tensors(attached), write_transforms({}, attached)["transform_config"]

    assert {name: float(matrix[0, 0]) for name, matrix in tensors.items()} == {
        "a.R4_input.weight": 1.0,
        "b.R4_1_input.weight": -1.0,
    }
    assert {name: group["apply"][0]["targets"] for name, group in table["config_groups"].items()} == {
        "R4": ["a", "c"],
        "R4_1": ["b"],
    }


def test_the_library_computes_with_a_learned_matrix_what_we_do():
    """Any orthogonal one: it is stored as a Hadamard matrix is, and multiplied by as such."""
    generator = torch.Generator().manual_seed(0)
    online = InputRotation(group="R4", block_size=32, transform_type="random-hadamard", stored=True)
    layer, x = torch.nn.Linear(128, 4), torch.randn(5, 128, generator=generator)
    attach(layer, online, online.buffers_of(random_orthogonal(32, generator)))
    attached = [Attached.on(LAYER, layer, online)]

    (matrix,) = rotation_tensors(attached).values()
    (group,) = write_transforms({}, attached)["transform_config"]["config_groups"].values()
    theirs = apply_transform_weight(matrix.float(), x, "input", torch.nn.Linear) / 32**0.5

    assert (matrix.dtype, group["type"], group["head_dim"]) == (torch.bfloat16, "random-hadamard", 32)
    assert (online.inputs(layer, x) - x).norm() > x.norm()
    torch.testing.assert_close(theirs, online.inputs(layer, x))


@pytest.mark.parametrize(
    ("name", "attachment", "shapes", "message"),
    [
        ("model.layers.0.mlp.experts.3.down_proj", InputRotation(group="R4"), {}, "inputs of experts"),
        (LAYER, InputRotation(group="R4"), {"bias": (4,)}, "with a bias"),
        ("lm_head", InputRotation(group="v"), {}, "output head"),
        (LAYER, InputRotation(group="v", transform_type="random-matrix"), {}, "scale and invert it wrongly"),
        ("model.layers.0.self_attn", AttentionRotation(group="R3"), {}, "leave out R3"),
    ],
)
def test_what_engines_would_compute_wrongly_is_refused(name, attachment, shapes, message):
    with pytest.raises(SchemeError, match=f"{name}.*{message}"):
        FORM.check_attachment(Attached(name, ("Linear",), attachment, {"weight": (4, 8), **shapes}))


@pytest.mark.parametrize(
    "table",
    [
        {"other": {}},
        {"config_groups": {"R4": {"apply": []}}},
        {"config_groups": {"R4": {"type": "hadamard", "apply": [{"location": "input"}]}}},
        {"config_groups": {"R4": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "above"}]}}},
        {"config_groups": {"R4": {"type": "random-matrix", "apply": [{"targets": ["Linear"], "location": "input"}]}}},
        {"config_groups": {"R4": {"type": "hadamard", "randomize": True,
                                  "apply": [{"targets": ["Linear"], "location": "input"}]}}},
    ],
    ids=str,
)  # fmt: skip
def test_tables_that_are_not_understood_are_refused(table):
    with pytest.raises(CheckpointError, match="transform_config"):
        read_transforms({"transform_config": table})


def test_what_is_ignored_has_no_rotation():
    item = {"targets": ["Linear"], "location": "input", "ignore": ["re:.*up_proj"]}
    lookup = read_transforms({"transform_config": {"config_groups": {"v": {"type": "hadamard", "apply": [item]}}}})

    assert lookup(LAYER, ("Linear",), ()) == [InputRotation(group="v")]
    assert lookup("model.layers.0.mlp.up_proj", ("Linear",), ()) == []
