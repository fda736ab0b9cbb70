"""Models that are built without weights, and get them when their turn comes."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, SiglipVisionConfig, SiglipVisionModel, Wav2Vec2Config, Wav2Vec2ForCTC

from coldpress import oneshot
from coldpress.attachment import every_attachment
from coldpress.checkpoint import CheckpointReader
from coldpress.dataflow.partition import partition
from coldpress.errors import ArgumentError, CheckpointError, NumericsError
from coldpress.models import load_model
from coldpress.models.dense import folder_checkpoint
from coldpress.models.skeleton import stream_model
from coldpress.models.streaming import without_weights
from coldpress.testing.models import batches, filled, logits, tiny_conv1d, tiny_llama, tiny_tokenizer
from coldpress.testing.rounding import Rounding

CPU = torch.device("cpu")
MODELS = {
    "llama": lambda: tiny_llama(),
    "tied": lambda: tiny_llama(tied=True, dtype=torch.bfloat16),
    "conv1d": lambda: tiny_conv1d(),
}


@pytest.fixture(params=MODELS)
def folder(request, tmp_path):
    return save(MODELS[request.param](), tmp_path / "model")


@pytest.fixture
def llama(tmp_path):
    return save(tiny_llama(), tmp_path / "llama")


def save(model, path):
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def stream(folder, dtype="auto"):
    return stream_model(folder_checkpoint(str(folder), folder), dtype=dtype, device=CPU)


def in_memory(model):
    return {name for name, parameter in model.named_parameters() if not parameter.is_meta}


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_model_is_built_without_weights_and_with_its_buffers(folder):
    weights = stream(folder)

    assert in_memory(weights.model) == set()
    expected = dict(load_model(folder, device="cpu").named_buffers())
    found = dict(weights.model.named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], buffer) for name, buffer in expected.items())


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16, torch.float32])
def test_what_is_called_fetches_its_weights(folder, dtype):
    weights, data = stream(folder, dtype), batches(rows=2)

    with weights, torch.no_grad():
        said = logits(weights.model, data)

    assert torch.equal(said, logits(load_model(folder, dtype=dtype, device="cpu"), data))
    assert not any(module._forward_pre_hooks for module in weights.model.modules())


def test_what_reads_the_weights_of_its_parts_without_calling_them_gets_them_too(tmp_path):
    """As the pooling head of SigLIP does, whose attention is torch's own."""
    config = SiglipVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    model = filled(SiglipVisionModel(config), torch.float32, 0)
    pictures = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "model")

    with torch.no_grad(), stream(tmp_path / "model") as weights:
        said = weights.model(pictures).pooler_output

    with torch.no_grad():
        assert torch.equal(said, model.eval()(pictures).pooler_output)


def test_weights_come_with_their_stage_and_go_with_it(llama):
    weights = stream(llama)

    for stage in partition(weights.model):
        weights.read(stage.modules)
        assert in_memory(weights.model) == {
            f"{name}.{part}"
            for name, module in stage.modules.items()
            for part, _ in module.named_parameters(recurse=False)
        }
        weights.drop(stage.modules)
    assert in_memory(weights.model) == set()


HOLES = """
import re, torch
from pathlib import Path
from torch import nn
from coldpress.models.streaming import WeightStream

def resident():
    return int(re.search("RssAnon:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1])

shapes = [(512, 512)] * 4 + [(1728, 512)] * 3
blocks = [[nn.Linear(i, o, bias=False, device="meta", dtype=torch.bfloat16) for o, i in shapes] for _ in range(8)]
model = nn.ModuleList(nn.ModuleList(block) for block in blocks)
weights, before = WeightStream(model, None, {}, torch.device("cpu")), resident()
for name, block in model.named_children():
    weights.fill({f"{name}.{part}": torch.ones(tensor.shape).bfloat16() for part, tensor in block.named_parameters()})
    for parameter in block.parameters():
        codes = parameter.detach().float().abs_().mul_(2).to(torch.int8)
    del codes
    weights.drop({f"{name}.{part}": module for part, module in block.named_modules()})
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not say what is resident")
def test_memory_of_dropped_weights_is_given_back_to_the_system():
    grown = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True).stdout

    assert int(grown) < 8000  # kB; 13000 to 14000 where glibc keeps it


def test_a_tied_weight_stays_one_object_until_its_last_owner_is_done(tmp_path):
    weights = stream(save(tiny_llama(tied=True), tmp_path / "tied"))
    prologue, *_, epilogue = partition(weights.model)

    weights.read(prologue.modules)
    weights.drop(prologue.modules)

    model = weights.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight.is_meta
    weights.drop(epilogue.modules)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.is_meta


def test_what_is_called_after_it_was_dropped_asks_for_what_it_has_become(llama):
    weights = stream(llama)
    norm = {"model.norm": weights.model.model.norm}
    weights.fetch_again = lambda name, module: {f"{name}.weight": torch.full((128,), 3.0)}
    weights.read(norm)
    weights.drop(norm)

    with weights:
        weights.model.model.norm(torch.ones(1, 128))

    assert torch.equal(weights.model.model.norm.weight, torch.full((128,), 3.0))


def test_other_modules_are_built_as_ever_afterwards():
    with without_weights():
        assert nn.Linear(2, 2).weight.is_meta

    assert not nn.Linear(2, 2).weight.is_meta


def test_a_missing_tensor_is_named(llama):
    change(llama, lambda tensors: tensors.pop("model.norm.weight"))

    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensors of a LlamaForCausalLM, the first is 'model.norm.weight'"
    ):
        stream(llama)


def test_a_tensor_of_another_shape_is_named(llama):
    change(llama, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))

    with pytest.raises(CheckpointError, match=r"'model.norm.weight' has the shape \(3,\) where .* has \(128,\)"):
        stream(llama)


def test_a_tensor_that_the_model_has_no_place_for_comes_along(llama, tmp_path, caplog):
    spare = torch.randn(3, 4)
    change(llama, lambda tensors: tensors.update({"mtp.layers.0.proj.weight": spare}))

    with caplog.at_level(logging.WARNING):
        oneshot(str(llama), Rounding(scheme="W8A8", ignore=["lm_head"]), output_dir=str(tmp_path / "out"))

    assert (
        "1 tensors of the files are no part of a LlamaForCausalLM, the first is mtp.layers.0.proj.weight" in caplog.text
    )
    assert torch.equal(CheckpointReader(tmp_path / "out").get("mtp.layers.0.proj.weight"), spare)
    assert (
        "mtp.layers.0.proj" in json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["ignore"]
    )
    layers = json.loads((tmp_path / "out/report.json").read_text())["layers"]
    line = next(line for line in layers if line["name"] == "mtp.layers.0.proj.weight")
    assert line["reason"] == "no part of the model: copied from its files unchanged"


def test_a_truncated_file_is_named(llama):
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])

    with pytest.raises(CheckpointError, match=r"model\.safetensors.*truncated"):
        stream(llama)


def test_names_that_transformers_translates_are_streamed(llama):
    expected = load_model(llama, device="cpu")

    def rename(tensors):
        for name in list(tensors):
            if name.startswith("model."):
                tensors[name.removeprefix("model.")] = tensors.pop(name)

    change(llama, rename)
    weights, data = stream(llama), batches(rows=2)

    with weights, torch.no_grad():
        assert torch.equal(logits(weights.model, data), logits(expected, data))


def test_tied_weights_that_differ_in_the_files_are_untied_as_transformers_does(tmp_path, caplog):
    folder = save(tiny_llama(tied=True), tmp_path / "tied")
    change(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(259, 128)}))

    weights = stream(folder)

    assert "are one by the configuration and two in the files: untied" in caplog.text
    weights.read({"lm_head": weights.model.lm_head, "model.embed_tokens": weights.model.model.embed_tokens})
    assert not weights.model.lm_head.weight.any()
    assert weights.model.model.embed_tokens.weight.any()


def compress(source, output, **settings):
    return oneshot(str(source), Rounding(scheme="W8A8", ignore=["lm_head"]), output_dir=str(output), **settings)


def weights_at(path):
    reader = CheckpointReader(path)
    return {name: reader.get(name) for name in reader.names()}


def test_streaming_writes_what_a_model_in_memory_writes(folder, tmp_path):
    streamed = compress(folder, tmp_path / "streamed")
    loaded = compress(folder, tmp_path / "loaded", stream_weights=False)

    one, two = weights_at(tmp_path / "streamed"), weights_at(tmp_path / "loaded")
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    for name in ("config.json", "generation_config.json", "recipe.yaml", "tokenizer.json"):
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "loaded" / name).read_bytes()
    assert torch.equal(logits(streamed, batches(rows=2)), logits(loaded, batches(rows=2)))
    assert [name for name, _, _ in every_attachment(streamed.named_modules())] == [
        name for name, _, _ in every_attachment(loaded.named_modules())
    ]


def test_a_dense_output_keeps_the_quantization_of_inputs_in_the_model_that_is_returned(llama, tmp_path):
    streamed = compress(llama, tmp_path / "streamed", save_compressed=False)
    loaded = compress(llama, tmp_path / "loaded", save_compressed=False, stream_weights=False)

    assert torch.equal(logits(streamed, batches(rows=2)), logits(loaded, batches(rows=2)))


def test_no_model_is_returned_where_none_is_wanted(llama, tmp_path):
    assert compress(llama, tmp_path / "out", return_model=False) is None
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_head_that_is_quantized_is_untied(tmp_path):
    folder = save(tiny_llama(tied=True), tmp_path / "tied")

    oneshot(str(folder), Rounding(scheme="W8A8"), output_dir=str(tmp_path / "out"), return_model=False)

    names = CheckpointReader(tmp_path / "out").names()
    assert {"lm_head.weight", "lm_head.weight_scale", "model.embed_tokens.weight"} <= set(names)
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "no output_dir"),
        ({"output_dir": "out", "model": tiny_llama()}, "neither a folder of safetensors files nor on a hub"),
    ],
)
def test_streaming_that_is_asked_for_and_impossible_is_refused(llama, tmp_path, settings, reason):
    if "output_dir" in settings:
        settings = {**settings, "output_dir": str(tmp_path / "out")}

    with pytest.raises(ArgumentError, match=f"stream_weights=True is not possible: .*{reason}"):
        oneshot(**{"model": str(llama), "recipe": Rounding(scheme="W8A8"), "stream_weights": True, **settings})


def test_a_nan_in_a_later_stage_is_named(llama, tmp_path):
    change(llama, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[5:6].fill_(float("nan")))

    with pytest.raises(NumericsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        compress(llama, tmp_path / "out")


def two_towers():
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 259, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=16)
    data = [{**batch, "pixel_values": torch.ones(1, 3, 16, 16)} for batch in batches(rows=2)]
    return CLIPModel(config), data


def weight_norm():
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    convolutions = {"conv_dim": (8,), "conv_kernel": (4,), "conv_stride": (4,), "num_conv_pos_embeddings": 4}
    config = Wav2Vec2Config(**small, **convolutions, num_feat_extract_layers=1, num_conv_pos_embedding_groups=2)
    return Wav2Vec2ForCTC(config), [{"input_values": torch.linspace(-1, 1, 160)[None]}]


@pytest.mark.parametrize("build", [two_towers, weight_norm], ids=["a scale at the end", "a weight of two parameters"])
def test_parameters_that_are_no_layer_s_are_there_when_they_are_read_and_in_the_output(build, tmp_path):
    model, data = build()
    save(model, tmp_path / "model")
    recipe = "GPTQModifier: {scheme: W8A16, group_size: -1}"

    streamed = oneshot(str(tmp_path / "model"), recipe, dataset=data, output_dir=tmp_path / "out", quiet=True)
    in_memory = oneshot(load_model(tmp_path / "model"), recipe, dataset=data, quiet=True)

    with torch.no_grad():
        for batch in data:
            torch.testing.assert_close(streamed(**batch)[0], in_memory(**batch)[0])
