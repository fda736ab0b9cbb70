"""oneshot as a whole: defaults, settings on their way to the pipeline, and recipes that replay."""

import hashlib
import json
from copy import deepcopy

import pytest
import yaml
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from coldpress import ModelError, Oneshot, RecipeError, load_context, oneshot, perplexity
from coldpress.testing.models import batches, tiny_llama, tiny_tokenizer
from coldpress_quantization import QuantizationModifier


def static() -> QuantizationModifier:
    return QuantizationModifier(scheme="FP8", ignore=["lm_head"])


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def pipeline_of(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())["pipeline"]


@pytest.mark.parametrize(
    ("scheme", "pipeline"), [("FP8", "sequential"), ("FP8_DYNAMIC", "data_free")], ids=["reads data", "reads none"]
)
def test_the_pipeline_is_what_the_recipe_needs(scheme, pipeline, tmp_path):
    modifier = QuantizationModifier(scheme=scheme, ignore=["lm_head"])
    oneshot(tiny_llama(), modifier, dataset=batches(), output_dir=tmp_path / "out")

    assert pipeline_of(tmp_path / "out") == pipeline


CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}


@pytest.mark.parametrize(
    "settings",
    [{"scheme": "FP8", "input_observer": "minmax"}, {"kv_cache_scheme": CACHE}],
    ids=["static inputs", "KV cache"],
)
def test_a_sample_is_a_batch_where_ranges_are_averaged_over_batches(settings, tmp_path):
    def run(batch_size):
        texts = ["abcd", "efgh", "ijkl", "mnop"]
        folder = tmp_path / f"batches of {batch_size}"
        oneshot(
            tiny_llama(),
            QuantizationModifier(**settings),
            dataset=texts,
            num_calibration_samples=4,
            tokenizer=tiny_tokenizer(),
            output_dir=folder,
            **({} if batch_size is None else {"batch_size": batch_size}),
        )
        return digest(folder)

    assert run(None) == run(1) != run(4)


def test_settings_of_the_pipeline_are_arguments_and_are_written_down(tmp_path):
    oneshot(
        tiny_llama(), static(), dataset=batches(), sequential_targets="LlamaDecoderLayer", output_dir=tmp_path / "out"
    )

    assert pipeline_of(tmp_path / "out") == {"sequential": {"sequential_targets": "LlamaDecoderLayer"}}


@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential", "independent"])
def test_where_activations_wait_is_an_argument_and_changes_no_byte(pipeline, tmp_path):
    for name, settings in {"memory": {}, "disk": {"offload_activations": "disk", "offload_limit": 5000}}.items():
        oneshot(tiny_llama(), static(), dataset=batches(), pipeline=pipeline, output_dir=tmp_path / name, **settings)

    assert digest(tmp_path / "memory") == digest(tmp_path / "disk")
    assert pipeline_of(tmp_path / "memory") == pipeline
    assert pipeline_of(tmp_path / "disk") == {pipeline: {"offload_activations": "disk", "offload_limit": 5000}}


def test_the_peers_name_of_the_place_is_accepted_and_says_which_is_ours(caplog):
    oneshot(tiny_llama(), static(), dataset=batches(), sequential_offload_device="cuda:1")

    assert "sequential_offload_device has no effect: what waits is on its card, in CPU memory or on disk" in caplog.text


def test_a_setting_that_the_pipeline_does_not_have_is_said_to_do_nothing(caplog):
    oneshot(tiny_llama(), static(), dataset=batches(), pipeline="basic", propagate_error=False)

    assert "propagate_error has no effect: the pipeline basic" in caplog.text


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8"])
def test_the_saved_recipe_replays_to_the_same_bytes(scheme, tmp_path):
    modifier = QuantizationModifier(scheme=scheme, ignore=["lm_head"])
    oneshot(tiny_llama(), modifier, dataset=batches(), output_dir=tmp_path / "first")
    oneshot(tiny_llama(), tmp_path / "first" / "recipe.yaml", dataset=batches(), output_dir=tmp_path / "second")

    assert digest(tmp_path / "first") == digest(tmp_path / "second")
    assert (tmp_path / "first/recipe.yaml").read_text() == (tmp_path / "second/recipe.yaml").read_text()


@pytest.mark.parametrize("told", [True, None])
def test_what_is_observed_is_what_compressed_blocks_put_out_where_they_are_told_to_show_it(tmp_path, told):
    """With 8 bits they are not by themselves; basic cannot."""
    reports = {}
    for pipeline in ("basic", "sequential", "layer_sequential", "independent"):
        oneshot(
            tiny_llama(),
            static(),
            dataset=batches(),
            pipeline=pipeline,
            output_dir=tmp_path / pipeline,
            true_sequential=False,
            propagate_error=told,
        )
        reports[pipeline] = digest(tmp_path / pipeline)

    assert reports["sequential"] == reports["layer_sequential"] == reports["independent"]  # of one modifier
    assert (reports["basic"] == reports["sequential"]) == (told is None)


def test_oneshot_as_an_object_checks_first_and_runs_when_it_is_called(tmp_path):
    with pytest.raises(RecipeError, match="no modifier is called"):
        Oneshot(model=tiny_llama(), recipe="modifiers: [QuantisationModifier]")
    job = Oneshot(model=tiny_llama(), recipe=[static()], dataset=batches(), output_dir=tmp_path / "out", quiet=True)
    before = digest(tmp_path)

    assert before == {}
    assert [type(modifier) for modifier in job.recipe.modifiers] == [QuantizationModifier]
    assert job() is job.model
    oneshot(tiny_llama(), static(), dataset=batches(), output_dir=tmp_path / "same", quiet=True)
    assert digest(tmp_path / "out") == digest(tmp_path / "same")


@pytest.mark.parametrize("loader", [None, LlamaForCausalLM])
def test_the_device_maps_of_llm_compressor_are_understood_in_its_context(loader, tmp_path, caplog):
    tiny_llama().save_pretrained(tmp_path)
    cls = loader or AutoModelForCausalLM
    before = cls.from_pretrained

    with load_context(loader):
        for device_map in (None, "auto_offload", "disk"):
            model = cls.from_pretrained(tmp_path, device_map=device_map)
            assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}

    assert cls.from_pretrained == before
    assert caplog.text.count("pass the model's folder and an output_dir") == 1


def test_the_run_is_one_attribute_of_the_model_away(tmp_path):
    recipe = "QuantizationModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}"
    tokenizer = tiny_tokenizer()
    original, model = tiny_llama(), tiny_llama()

    model = oneshot(model, recipe, tokenizer=tokenizer, output_dir=tmp_path / "out")

    found = model.coldpress
    assert found.output_dir == tmp_path / "out"
    assert (
        json.loads(json.dumps(found.report.to_dict()["layers"]))
        == json.loads((tmp_path / "out" / "report.json").read_text())["layers"]
    )
    assert "QuantizationModifier" in found.recipe
    assert "14 quantized, 2 untouched" in repr(found)
    assert "<td>14 quantized, 2 untouched</td>" in found._repr_html_()
    text = "The quick brown fox jumps over the lazy dog. " * 20
    assert found.perplexity(text, window=64).value == perplexity(model, tokenizer, text, window=64).value
    assert 0 < found.divergence(original, text, window=64).kl < 1
    copy = deepcopy(model)
    assert copy.coldpress._model is copy


def test_evaluation_without_a_tokenizer_says_so():
    model = oneshot(tiny_llama(), "QuantizationModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}")

    with pytest.raises(ModelError, match="evaluation needs a tokenizer"):
        model.coldpress.perplexity("text")
    assert "output not written" in repr(model.coldpress)
