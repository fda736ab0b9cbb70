"""`model.save_pretrained` after a run is as good as an output folder, and writes the model as it is then."""

import copy
import io
import json
import pickle
from pathlib import Path

import peft
import pytest
import torch
import transformers
import transformers.utils.hub as hub
from safetensors.torch import load_file

from coldpress import load_model, oneshot
from coldpress.checkpoint.output import Output
from coldpress.errors import ArgumentError, CheckpointError, ColdpressError, ModelError, SchemeError
from coldpress.experts import fused_state_dict
from coldpress.plugin import Modifier, hookimpl
from coldpress.quantized import encoding_of
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama, tiny_tokenizer

W4 = "QuantizationModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}"
W8A8 = "QuantizationModifier: {scheme: W8A8, ignore: [lm_head]}"
RECIPES = {
    "codes": ("GPTQModifier: {scheme: W4A16_ASYM, group_size: 32, ignore: [lm_head]}", tiny_llama),
    "inputs": (W8A8, tiny_llama),
    "static inputs, head, half": (
        "QuantizationModifier: {scheme: FP8}",
        lambda: tiny_llama(dtype=torch.bfloat16, tied=True),
    ),
    "global scales": ("QuantizationModifier: {scheme: NVFP4, ignore: [lm_head]}", tiny_llama),
    "keys and values": (
        "QuantizationModifier: {scheme: W8A16, group_size: -1, ignore: [lm_head], "
        "kv_cache_scheme: {num_bits: 8, type: float, strategy: tensor}}",
        tiny_llama,
    ),
    "turned": ("QuantizationModifier: {scheme: W4A16, group_size: 32, targets: [Conv1D]}", tiny_conv1d),
    "experts": (W4, lambda: tiny_mixture("mixtral")),
    "pruned": ("MagnitudePruningModifier: {sparsity: 0.5, targets: [Linear]}", tiny_llama),
}
WRITTEN = ("config.json", "generation_config.json", "model.safetensors", "recipe.yaml")


def compressed(recipe=W4, model=None, **settings):
    return oneshot(model or tiny_llama(), recipe, dataset=batches(), quiet=True, **settings)


def files(folder):
    return {name: (folder / name).read_bytes() for name in WRITTEN if (folder / name).is_file()}


@pytest.mark.parametrize("case", RECIPES)
def test_saving_later_gives_the_bytes_of_saving_at_once(tmp_path, case):
    recipe, make = RECIPES[case]
    at_once = compressed(recipe, make(), output_dir=tmp_path / "at once")
    later = compressed(recipe, make())

    later.save_pretrained(tmp_path / "later")
    at_once.save_pretrained(tmp_path / "again", save_compressed=True)
    copy.deepcopy(later).save_pretrained(tmp_path / "copy")
    pickle.loads(pickle.dumps(later)).save_pretrained(tmp_path / "pickle")

    expected = files(tmp_path / "at once")
    assert len(expected) >= 3
    for name in ("later", "again", "copy", "pickle"):
        assert files(tmp_path / name) == expected, name
    report = json.loads((tmp_path / "later" / "report.json").read_text())
    assert report["summary"] == json.loads((tmp_path / "at once" / "report.json").read_text())["summary"]


def test_a_streamed_model_is_saved_again_and_over_its_own_output(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "source")
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    model = compressed(W4, str(tmp_path / "source"), output_dir=tmp_path / "out", stream_weights=True)
    expected = files(tmp_path / "out")

    model.save_pretrained(tmp_path / "again")
    model.save_pretrained(tmp_path / "out")

    assert files(tmp_path / "again") == expected
    assert files(tmp_path / "out") == expected
    assert (tmp_path / "again" / "tokenizer.json").is_file()


def test_what_was_changed_after_the_run_is_written_as_it_is_now(tmp_path):
    model = compressed()
    with torch.no_grad():
        model.model.norm.weight.fill_(7)
    model.config.rope_theta_of_mine = 3
    model.resize_token_embeddings(300)
    del model.model.layers[1]
    model.config.num_hidden_layers = 1

    model.save_pretrained(tmp_path / "out")

    again = load_model(tmp_path / "out")
    assert torch.equal(again.model.norm.weight, model.model.norm.weight)
    assert again.get_input_embeddings().weight.shape[0] == 300
    assert again.config.rope_theta_of_mine == 3
    assert torch.equal(logits(again, batches(rows=2)), logits(model, batches(rows=2)))


def test_layers_that_were_taken_out_without_the_configuration_are_told(tmp_path, caplog):
    model = compressed()
    del model.model.layers[-1]

    model.save_pretrained(tmp_path / "out")

    assert "are not those that its configuration describes, the first is model.layers.1." in caplog.text
    model.config.num_hidden_layers -= 1
    caplog.clear()
    model.save_pretrained(tmp_path / "right")
    assert "configuration describes" not in caplog.text
    load_model(tmp_path / "right", device="cpu")


def test_a_copy_that_was_changed_saves_itself_and_not_the_original(tmp_path):
    model = compressed()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight.fill_(7)

    other.save_pretrained(tmp_path / "other")
    model.save_pretrained(tmp_path / "model")

    norms = [load_file(tmp_path / name / "model.safetensors")["model.norm.weight"] for name in ("other", "model")]
    assert norms[0].eq(7).all()
    assert not norms[1].eq(7).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_that_was_put_into_another_dtype_keeps_its_codes_and_that_is_said_of_it(tmp_path, dtype, caplog):
    model = compressed()
    model.save_pretrained(tmp_path / "before")
    assert "compressed in" not in caplog.text

    model.to(dtype).save_pretrained(tmp_path / "after")

    assert f"compressed in torch.float32 and is {dtype} now" in caplog.text
    again = load_model(tmp_path / "after", device="cpu")
    assert again.dtype == dtype
    assert all(torch.equal(weight, model.get_parameter(name)) for name, weight in again.named_parameters())
    model.model.rotary_emb = again.model.rotary_emb  # whose angles `to` has rounded
    assert torch.equal(logits(again, batches(rows=2)), logits(model, batches(rows=2)))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    packed = [name for name in before if name.endswith("weight_packed")]
    assert packed
    assert all(torch.equal(before[name], after[name]) for name in packed)
    assert after["model.norm.weight"].dtype == dtype


def test_a_model_that_torch_saves_whole_can_be_saved_compressed_after_loading(tmp_path):
    model = compressed()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)

    torch.load(file, weights_only=False).save_pretrained(tmp_path / "out")

    model.save_pretrained(tmp_path / "expected")
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_a_layer_that_was_changed_after_it_was_quantized_is_refused_by_name_and_can_be_written_dense(tmp_path):
    model = compressed()
    layer = model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        layer.weight.mul_(1.1)

    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight was changed after .*int4"):
        model.save_pretrained(tmp_path / "out")
    assert not list(tmp_path.iterdir())

    model.save_pretrained(tmp_path / "dense", save_compressed=False, safe_serialization=True)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(again.model.layers[1].mlp.up_proj.weight, layer.weight)
    assert not hasattr(again.config, "quantization_config")


def test_weights_of_a_quantized_layer_that_were_zeroed_are_written_as_zeros(tmp_path):
    model = compressed()
    layer = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.weight[:, ::2] = 0

    model.save_pretrained(tmp_path / "out")

    again = load_model(tmp_path / "out").model.layers[0].mlp.up_proj.weight
    assert again[:, ::2].eq(0).all()
    assert torch.equal(again, layer.weight)


TAKEN = {
    "transformers": {"safe_serialization": True, "push_to_hub": False, "variant": None, "token": None},
    "its state": "own",
    "llm-compressor": {
        "quantization_format": "pack-quantized",
        "skip_sparsity_compression_stats": True,
        "disable_sparse_compression": True,
        "sparsity_config": None,
    },
    "shards": {"max_shard_size": "100KB"},
    "more of transformers": {"save_original_format": True, "save_peft_format": True, "distributed_checkpoint": False},
}


@pytest.mark.parametrize("case", TAKEN)
def test_arguments_of_transformers_and_llm_compressor_are_taken(tmp_path, case):
    model = compressed()
    settings = {"state_dict": model.state_dict()} if TAKEN[case] == "own" else TAKEN[case]

    model.save_pretrained(tmp_path / "out", save_compressed=True, **settings)

    assert torch.equal(logits(load_model(tmp_path / "out"), batches(rows=1)), logits(model, batches(rows=1)))
    assert ((tmp_path / "out" / "model.safetensors.index.json").is_file()) == (case == "shards")


def test_names_of_the_class_are_warned_of_and_not_written(tmp_path, caplog):
    model = compressed()
    model.save_pretrained(tmp_path / "out", save_original_format=False)

    assert "save_original_format=False has no effect" in caplog.text
    assert torch.equal(logits(load_model(tmp_path / "out"), batches(rows=1)), logits(model, batches(rows=1)))


REFUSED = {
    "unknown": ({"save_compresed": True}, "did you mean 'save_compressed'"),
    "pickle": ({"safe_serialization": False}, "safe_serialization=False is not possible"),
    "variant": ({"variant": "fp16"}, "variant='fp16' is not possible"),
    "names": ({"save_original_format": "no"}, "save_original_format"),
    "size": ({"max_shard_size": "five"}, "max_shard_size is 'five'"),
    "form": ({"quantization_format": "nonsense"}, "nonsense"),
    "state": ({"state_dict": {}}, "state_dict is not the model's own: 'model.embed_tokens.weight' differs"),
    "strange state": ({"state_dict": {"x": torch.zeros(1)}}, "state_dict is not the model's own: 'x' differs"),
    "not overwriting": ({"overwrite": False}, "exists and is not empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_are_not_possible_are_refused_and_nothing_is_written(tmp_path, case):
    settings, message = REFUSED[case]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()

    with pytest.raises(ColdpressError, match=message):
        compressed().save_pretrained(tmp_path / "out", **settings)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_state_that_differs_from_the_model_s_is_refused_by_name(tmp_path):
    model = compressed()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "out", state_dict=state)
    state["model.norm.weight"] += 1

    with pytest.raises(ArgumentError, match=r"'model\.norm\.weight' differs"):
        model.save_pretrained(tmp_path / "other", state_dict=state)


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    compressed().save_pretrained(tmp_path / "out", False)

    assert not list(tmp_path.iterdir())


def test_pushing_uploads_the_compressed_checkpoint(tmp_path, monkeypatch):
    seen = {}

    class Card:
        def save(self, path):
            pass

    class Api:
        def create_repo(self, name, **settings):
            return type("Repository", (), {"repo_id": name})

    def upload(self, folder, repo_id, **settings):
        seen.update(config=json.loads((Path(folder) / "config.json").read_text()), repo_id=repo_id, **settings)

    monkeypatch.setattr(hub, "hf_api", lambda *args, **settings: Api())
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *args, **settings: Card())
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_upload_modified_files", upload)

    compressed().save_pretrained(tmp_path / "name", push_to_hub=True, repo_id="me/name", commit_message="first")

    assert seen["config"]["quantization_config"]["quant_method"] == "compressed-tensors"
    assert (seen["repo_id"], seen["commit_message"]) == ("me/name", "first")
    assert (tmp_path / "name" / "model.safetensors").is_file()


def test_a_tokenizer_that_was_saved_there_before_stays_and_so_does_everything_else(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "source")
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    model = compressed(W4, str(tmp_path / "source"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "thesis.txt").write_text("mine")

    for _ in range(2):
        model.save_pretrained(tmp_path / "out")

    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    assert "<mine>" in (tmp_path / "out" / "tokenizer.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_dense_weights_of_the_same_folder_are_kept_beside_it(tmp_path, caplog):
    tiny_llama().save_pretrained(tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    compressed().save_pretrained(tmp_path / "out")

    assert (tmp_path / "out.replaced" / "model.safetensors").read_bytes() == before
    assert "did not write" in caplog.text


@pytest.mark.parametrize("dense", [False, True])
def test_the_folder_of_the_model_is_refused(tmp_path, dense):
    tiny_llama().save_pretrained(tmp_path / "source")
    before = files(tmp_path / "source")
    model = compressed(W4, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "source"))

    with pytest.raises(CheckpointError, match="is the folder of the model"):
        model.save_pretrained(tmp_path / "source", save_compressed=not dense)

    assert files(tmp_path / "source") == before


def test_a_tilde_and_the_working_folder_are_places_like_others(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = compressed()

    model.save_pretrained("~/there")
    model.save_pretrained(".")

    assert files(tmp_path / "there") == files(tmp_path / "here")


class Noting(Modifier):
    """Writes a file beside the checkpoint."""

    @hookimpl
    def initialize(self, state, stage):
        for layer in self.layers(stage):
            state.scratch[self, layer] = 1

    @hookimpl
    def save(self, state, folder):
        (folder / "note.txt").write_text(f"{type(state.model).__name__} {len(state.scratch)}")


def test_files_that_modifiers_write_come_with_what_is_saved_later(tmp_path):
    model = compressed([Noting(targets=["Linear"])])

    model.save_pretrained(tmp_path / "later")
    copy.deepcopy(model).save_pretrained(tmp_path / "copy")

    assert (tmp_path / "later" / "note.txt").read_text() == "LlamaForCausalLM 15"
    assert (tmp_path / "copy" / "note.txt").read_text() == "LlamaForCausalLM 15"


# --- one run after another

PART = "QuantizationModifier: {scheme: W8A8, targets: ['re:.*self_attn.*']}"
OTHER = "QuantizationModifier: {scheme: W4A16, group_size: 32, targets: ['re:.*mlp.*']}"


def on_disk(recipe, model, folder, way):
    """Compress a model again: what is in memory, what was loaded from its checkpoint, or the folder."""
    if way == "memory":
        return compressed(recipe, model, output_dir=folder / "out")
    model.save_pretrained(folder / "first")
    source = load_model(folder / "first") if way == "loaded" else str(folder / "first")
    return compressed(recipe, source, output_dir=folder / "out")


WAYS = pytest.mark.parametrize("way", ["memory", "loaded", "folder"])


@WAYS
def test_a_second_run_adds_its_scheme_to_that_of_the_first(tmp_path, way):
    first = compressed(PART)
    codes = {name: encoding_of(module) for name, module in first.named_modules() if encoding_of(module)}
    attention = {name: first.get_submodule(name).weight.clone() for name in codes}

    model = on_disk(OTHER, first, tmp_path, way)

    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert sorted(group["weights"]["num_bits"] for group in config["config_groups"].values()) == [4, 8]
    again = load_model(tmp_path / "out")
    assert torch.equal(logits(again, batches(rows=2)), logits(model, batches(rows=2)))
    assert all(torch.equal(again.get_submodule(name).weight, attention[name]) for name in attention)
    lines = {line["name"]: line for line in json.loads((tmp_path / "out" / "report.json").read_text())["layers"]}
    assert lines["model.layers.0.self_attn.q_proj"]["reason"] == "kept from an earlier run"
    assert lines["model.layers.0.self_attn.q_proj"]["status"] == "quantized"


@WAYS
def test_layers_that_are_quantized_again_are_told(tmp_path, way, caplog):
    model = on_disk(OTHER, compressed(W8A8), tmp_path, way)

    assert "6 layers were quantized before, the first is model.layers.0.mlp.gate_proj (int8" in caplog.text
    assert "rounded a second time" in caplog.text
    lines = {line["name"]: line for line in json.loads((tmp_path / "out" / "report.json").read_text())["layers"]}
    assert lines["model.layers.0.mlp.up_proj"]["notes"]["quantized_before"].startswith("int8")
    again = load_model(tmp_path / "out")
    assert torch.equal(logits(again, batches(rows=2)), logits(model, batches(rows=2)))


@WAYS
def test_layers_that_are_pruned_after_they_were_quantized_are_dense_and_told(tmp_path, way, caplog):
    recipe = "SparseGPTModifier: {sparsity: 0.5, mask_structure: '2:4', targets: ['re:.*mlp.*']}"

    model = on_disk(recipe, compressed(W8A8), tmp_path, way)

    assert "they are changed, and dense from here on" in caplog.text
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.0.mlp.up_proj.weight" in tensors
    assert "model.layers.0.mlp.up_proj.weight_scale" not in tensors
    assert "model.layers.0.self_attn.q_proj.weight_scale" in tensors
    again = load_model(tmp_path / "out")
    assert torch.equal(logits(again, batches(rows=2)), logits(model, batches(rows=2)))


@WAYS
def test_a_scheme_of_keys_and_values_is_added_to_layers_that_are_quantized(tmp_path, way):
    recipe = "QuantizationModifier: {kv_cache_scheme: {num_bits: 8, type: float, strategy: tensor}}"

    model = on_disk(recipe, compressed(W8A8), tmp_path, way)

    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["kv_cache_scheme"]["num_bits"] == 8
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(name.endswith("k_scale") for name in tensors) == 2
    assert sum(name.endswith("weight_scale") for name in tensors) == 14
    again = load_model(tmp_path / "out")
    assert torch.equal(logits(again, batches(rows=2)), logits(model, batches(rows=2)))


def test_a_second_run_in_memory_is_saved_with_all_schemes(tmp_path):
    model = compressed(OTHER, compressed(PART))

    model.save_pretrained(tmp_path / "out")

    assert torch.equal(logits(load_model(tmp_path / "out"), batches(rows=2)), logits(model, batches(rows=2)))


def test_a_dense_output_of_a_quantized_model_has_no_scale_left(tmp_path):
    compressed(
        "ConstantPruningModifier: {targets: [lm_head]}",
        compressed(W8A8),
        output_dir=tmp_path / "out",
        save_compressed=False,
    )

    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "scale" in name]
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


def test_a_second_run_that_was_interrupted_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    def once(output):
        return compressed(OTHER, compressed(PART), output_dir=output)

    once(tmp_path / "whole")
    keep = Output.keep

    def stop(self, stage, state):
        keep(self, stage, state)
        if stage.name == "model.layers.0":
            raise KeyboardInterrupt

    monkeypatch.setattr(Output, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "out")
    monkeypatch.undo()

    model = once(tmp_path / "out")

    assert files(tmp_path / "out") == files(tmp_path / "whole")
    model.save_pretrained(tmp_path / "later")
    assert files(tmp_path / "later") == files(tmp_path / "whole")


def test_adapters_that_came_later_are_refused_until_they_are_off_again(tmp_path):
    model = compressed()
    model.save_pretrained(tmp_path / "before")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))

    with pytest.raises(ModelError, match=r"adapters \(PEFT\) were put into the model after it was compressed"):
        model.save_pretrained(tmp_path / "with")
    adapted.unload().save_pretrained(tmp_path / "after")

    assert not (tmp_path / "with").exists()
    assert files(tmp_path / "after") == files(tmp_path / "before")


@pytest.mark.parametrize("case", ["codes", "static inputs, head, half", "turned", "experts"])
def test_a_model_that_was_read_is_saved_dense(tmp_path, case):
    recipe, make = RECIPES[case]
    compressed(recipe, make(), output_dir=tmp_path / "out")
    model = load_model(tmp_path / "out")

    model.save_pretrained(tmp_path / "dense")
    copy.deepcopy(model).save_pretrained(tmp_path / "copied")

    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=model.dtype)
    weights, found = fused_state_dict(model), again.state_dict()
    assert all(torch.equal(weights[name], found[name]) for name in found)
    assert not [name for name in load_file(tmp_path / "dense" / "model.safetensors") if "scale" in name]
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert files(tmp_path / "dense") == files(tmp_path / "copied")


def test_a_model_that_was_read_is_not_saved_dense_where_that_is_another_model(tmp_path):
    compressed(RECIPES["keys and values"][0], output_dir=tmp_path / "out")
    model = load_model(tmp_path / "out")

    with pytest.raises(SchemeError, match="which dense weights cannot tell"):
        model.save_pretrained(tmp_path / "dense")
    with pytest.raises(ArgumentError, match="pass it to oneshot, or copy the folder"):
        model.save_pretrained(tmp_path / "dense", save_compressed=True)
    assert not (tmp_path / "dense").exists()


def test_dense_weights_cannot_tell_of_keys_and_values_that_an_earlier_run_quantized(tmp_path):
    model = compressed(RECIPES["keys and values"][0])

    with pytest.raises(SchemeError, match="an earlier run: .*kv_cache|an earlier run"):
        compressed(
            "ConstantPruningModifier: {targets: [lm_head]}", model, output_dir=tmp_path / "a", save_compressed=False
        )
    with pytest.raises(SchemeError, match="which dense weights cannot tell"):
        model.save_pretrained(tmp_path / "b", save_compressed=False)
    assert not list(tmp_path.iterdir())
