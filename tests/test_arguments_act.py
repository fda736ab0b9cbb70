"""An argument of `oneshot` does what it says, or is refused, or is said to have no effect; never nothing in silence."""

import ast
import json
import logging
from pathlib import Path

import pytest
import torch

from coldpress import load_model, oneshot
from coldpress.arguments import WITHOUT_EFFECT, argument_names, pipeline_setting_names
from coldpress.errors import ArgumentError, ModelError
from coldpress.testing.models import batches, tiny_llama, tiny_tokenizer
from coldpress_quantization import QuantizationModifier

CORE = Path(__file__).parents[1] / "core/src/coldpress"


def dynamic() -> QuantizationModifier:
    return QuantizationModifier(scheme="W8A8", ignore=["lm_head"])


def static() -> QuantizationModifier:
    return QuantizationModifier(scheme="FP8", ignore=["lm_head"])


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama with a tokenizer, whose head shares the embedding's weights."""
    path = tmp_path / "model"
    tiny_llama(tied=True).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def other(tmp_path, folder):
    """A folder with nothing but the model's configuration, of which one number is another."""
    path = tmp_path / "other"
    path.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    return path


def written(path):
    return json.loads((path / "config.json").read_text())


def test_every_argument_is_read_or_is_said_to_have_no_effect():
    read = {
        node.attr
        for path in CORE.rglob("*.py")
        if path.parent != CORE / "arguments"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }

    others = {*read, *WITHOUT_EFFECT, *pipeline_setting_names()}
    assert [name for name in argument_names() if name not in others] == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_config_name_is_what_the_model_is_built_with(folder, other, tmp_path, stream, form):
    name = other if form == "folder" else other / "config.json"

    model = oneshot(str(folder), dynamic(), config_name=name, stream_weights=stream, output_dir=tmp_path / "out")

    assert model.config.rms_norm_eps == 0.5
    assert model.model.norm.variance_epsilon == 0.5
    assert written(tmp_path / "out")["rms_norm_eps"] == 0.5


def test_a_compressed_model_s_configuration_does_not_say_how_a_dense_one_is_stored(folder, tmp_path):
    oneshot(str(folder), dynamic(), output_dir=tmp_path / "out")

    model = load_model(folder, config=str(tmp_path / "out"), device="cpu")

    assert not hasattr(model.config, "quantization_config")
    assert torch.equal(model.model.norm.weight, tiny_llama(tied=True).model.norm.weight)


@pytest.mark.parametrize("name", ["nowhere", "other/nowhere", "model/model.safetensors"])
def test_a_configuration_that_is_not_there_is_named(folder, other, tmp_path, name, monkeypatch):
    monkeypatch.setattr("coldpress.models.loading.hub_is_reachable", lambda: False)
    monkeypatch.setattr("coldpress.models.hub.hub_is_reachable", lambda: False)

    with pytest.raises(ModelError, match=name):
        oneshot(str(folder), dynamic(), config_name=str(tmp_path / name), output_dir=tmp_path / "out")


@pytest.mark.parametrize("stream", [True, False])
def test_embeddings_are_untied_when_that_is_asked_for(folder, tmp_path, stream):
    model = oneshot(
        str(folder), dynamic(), tie_word_embeddings=False, stream_weights=stream, output_dir=tmp_path / "out"
    )

    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert written(tmp_path / "out")["tie_word_embeddings"] is False


@pytest.mark.parametrize("stream", [True, False])
def test_precision_is_what_a_model_is_read_in(folder, tmp_path, stream):
    model = oneshot(str(folder), dynamic(), precision="half", stream_weights=stream, output_dir=tmp_path / "out")

    assert model.dtype == torch.float16
    assert written(tmp_path / "out")["dtype"] == "float16"


def test_precision_of_a_model_in_memory_may_be_said_and_not_changed():
    oneshot(tiny_llama(), dynamic(), precision="float32")

    with pytest.raises(ArgumentError, match=r"precision='bfloat16' .* in memory already, in torch.float32"):
        oneshot(tiny_llama(), dynamic(), precision="bfloat16")


def test_a_tokenizer_with_code_of_its_own_is_read_when_that_code_is_trusted(folder, tmp_path):
    (folder / "tokenization_own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.update(auto_map={"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}, tokenizer_class="OwnTokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    data = {"dataset": ["some text"], "quiet": True}

    with pytest.raises(ModelError, match="tokenizer"):
        oneshot(str(folder), static(), **data)

    assert oneshot(str(folder), static(), trust_remote_code_model=True, **data) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": tiny_llama, "config_name": "x"}, "config_name='x' says how to build a model, and this one"),
        ({"model_revision": "v1"}, "model_revision='v1' names a version on the hub"),
        ({"save_compressed": False, "format": "compressed-tensors"}, "save_compressed=False asks for dense weights"),
        ({"device": "gpu9"}, "device 'gpu9' cannot be used here"),
        ({"model": tiny_llama, "device": "gpu9"}, "device 'gpu9' cannot be used here"),
        ({"log_dir": "{model}/config.json/log"}, "log_dir: cannot write"),
        ({"restart": True, "output_dir": None}, "restart=True goes with output_dir"),
        ({"overwrite": True, "output_dir": None}, "overwrite=True goes with output_dir"),
    ],
)
def test_what_cannot_act_is_refused_before_any_work(folder, tmp_path, arguments, message):
    given = {"model": str(folder), "output_dir": str(tmp_path / "out"), **arguments}
    given = {name: value.format(model=folder) if isinstance(value, str) else value for name, value in given.items()}
    if callable(given["model"]):
        given["model"] = given["model"]()

    with pytest.raises(ArgumentError, match=message):
        oneshot(recipe=dynamic(), **given)

    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("recipe", "arguments", "idle", "reason"),
    [
        (dynamic, {"dataset": ["text"], "batch_size": 2}, ["dataset", "batch_size"], "no modifier of the recipe reads"),
        (static, {"dataset": batches(), "splits": "train", "max_seq_length": 4}, ["splits", "max_seq_length"], "as th"),
        (static, {"dataset": ["text"], "splits": "train[:1]"}, ["splits"], "has no splits"),
        (static, {"dataset": ["text"], "dataset_config_name": "en"}, ["dataset_config_name"], "is in memory already"),
        (static, {"dataset": "coldpress/short", "raw_kwargs": {"a": 1}}, ["raw_kwargs"], "the data set of a plugin"),
    ],
)
def test_arguments_that_the_data_leave_nothing_to_do_are_said_to_have_no_effect(
    caplog, recipe, arguments, idle, reason
):
    with caplog.at_level(logging.WARNING, "coldpress"):
        oneshot(tiny_llama(), recipe(), tokenizer=tiny_tokenizer(), **{"num_calibration_samples": 512, **arguments})

    told = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert [line.partition(" ")[0] for line in told] == idle
    assert all(reason in line for line in told)


def test_what_the_command_line_always_passes_is_not_said_to_have_no_effect(caplog):
    oneshot(tiny_llama(), dynamic(), dataset="coldpress/short", num_calibration_samples=512, batch_size=None)

    assert "has no effect" not in caplog.text
