"""A format that publishes another container than safetensors files: one file a stage, loaded again, resumed, killed."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from coldpress import CheckpointError, load_model, oneshot
from coldpress.errors import BrokenPluginError
from coldpress.report.contents import contents_of
from coldpress.testing.interrupt import interrupted, kept_stages, killed_publishing
from coldpress.testing.kit import Verdicts, checks_for
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress.testing.subject import subject_of

FORMAT = '''"""stage-files: codes of eight bits, in one file for each stage."""

import torch
from attrs import frozen
from coldpress.plugin import CheckpointError, Format, Quantized, Scheme, SchemeError, Weights


@frozen(kw_only=True)
class StageFiles(Format):
    """Codes as they are, one scale a row, in files of torch."""

    def check(self, scheme, name, shape):
        args = scheme.weights
        simple = args is not None and args.num_bits == 8 and args.strategy == "channel" and args.symmetric
        if not simple or scheme.input_activations is not None:
            raise SchemeError(f"{name}: stage-files holds symmetric weights of eight bits, one scale a row")

    def tensors(self, quantized):
        return {"codes": quantized.codes, "scale": quantized.scale}

    def config(self, schemes, ignore):
        return {"quant_method": "stage-files", "schemes": {name: one.to_dict() for name, one in schemes.items()}}

    def read(self, config):
        schemes = {name: Scheme.from_dict(one) for name, one in config["schemes"].items()}
        return lambda name, class_names: schemes.get(name)

    def restore(self, tensors, scheme):
        if not {"codes", "scale"} <= tensors.keys():
            raise CheckpointError("a layer lacks its codes or its scale")
        zeros = torch.zeros_like(tensors["scale"], dtype=torch.int8)
        return Quantized(scheme, codes=tensors["codes"], scale=tensors["scale"], zero_point=zeros)

    def publish(self, parts, folder, state):
        for number, (stage, names) in enumerate(parts.stages.items()):
            torch.save({name: parts.read(name) for name in names}, folder / f"{number:03d}-{stage}.pt")

    def open(self, folder):
        return Files(folder)


class Files(Weights):
    def __init__(self, folder):
        self.files = sorted(folder.glob("*.pt"))
        found = [torch.load(file, mmap=True) for file in self.files]
        self._tensors = {name: tensor for one in found for name, tensor in one.items()}

    def names(self):
        return list(self._tensors)

    def shape(self, name):
        return tuple(self._tensors[name].shape)

    def dtype(self, name):
        return self._tensors[name].dtype

    def read(self, name):
        return self._tensors[name].clone()
'''
MORE = """

@frozen(kw_only=True)
class Forgetful(StageFiles):
    def publish(self, parts, folder, state):
        parts.read(parts.names()[0])


@frozen(kw_only=True)
class Broken(StageFiles):
    def publish(self, parts, folder, state):
        raise KeyError("nothing")
"""
LINES = """[coldpress.formats]
stage-files = stage_files:StageFiles
forgetful = stage_files:Forgetful
broken = stage_files:Broken
"""
RECIPE = "QuantizationModifier: {scheme: W8A16, group_size: -1, ignore: [lm_head]}"
FILES = ["000-prologue.pt", "001-model.layers.0.pt", "002-model.layers.1.pt", "003-epilogue.pt"]


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """The format's package, as pip leaves it."""
    site = tmp_path / "site"
    info = site / "stage_files-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stage-files\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(LINES)
    (site / "stage_files.py").write_text(FORMAT + MORE)
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("stage_files", None)


@pytest.fixture
def source(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def compress(model, output, **settings):
    model = str(model) if isinstance(model, Path) else model
    return oneshot(model, RECIPE, output_dir=str(output), quiet=True, **{"format": "stage-files", **settings})


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def tensors_of(folder):
    return {name: tensor for file in sorted(folder.glob("*.pt")) for name, tensor in torch.load(file).items()}


def test_such_a_format_and_its_two_lines_of_metadata_have_at_most_60_lines():
    assert len(FORMAT.splitlines()) + 2 <= 60


@pytest.mark.parametrize("streamed", [True, False])
def test_what_is_published_is_the_model_that_is_returned(source, tmp_path, streamed):
    returned = compress(source, tmp_path / "out", stream_weights=streamed)

    loaded = load_model(tmp_path / "out", device="cpu")

    assert sorted(path.name for path in (tmp_path / "out").glob("*.pt")) == FILES
    assert not list((tmp_path / "out").glob("*.safetensors*"))
    assert same(loaded.state_dict(), returned.state_dict())
    assert torch.equal(logits(loaded, batches(rows=2)), logits(returned, batches(rows=2)))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(FILES) <= manifest["files"].keys()


@pytest.mark.parametrize("stages", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_tensors(source, tmp_path, stages):
    compress(source, tmp_path / "whole")
    with interrupted(stages):
        compress(source, tmp_path / "out")

    with kept_stages() as done:
        compress(source, tmp_path / "out")

    assert len(done) == 4 - stages
    assert same(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "whole"))


@pytest.mark.parametrize("reads", [0, 7])
def test_a_run_that_is_killed_while_it_publishes_goes_on_and_publishes_again(source, tmp_path, reads):
    compress(source, tmp_path / "whole")

    with killed_publishing(after=reads):
        compress(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    with kept_stages() as done:
        compress(source, tmp_path / "out")

    assert done == []
    assert same(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "whole"))


def test_what_is_published_is_inspected_by_the_words_of_its_format_and_the_counts_of_its_report(source, tmp_path):
    compress(source, tmp_path / "out")

    first, *others = contents_of(tmp_path / "out").parts

    layers = 2 * (128 * (128 + 64 + 64 + 128) + 3 * 128 * 256)
    assert (first.name, first.count, first.weights) == ("int8 channel", 14, layers)
    assert first.nbytes == layers + first.companion_nbytes
    assert not any(part.quantized for part in others)


def test_the_kit_checks_that_what_is_published_is_read_back():
    subject = subject_of("stage-files", kind="formats", settings={})
    checks = checks_for(subject)
    verdicts = Verdicts(subject, checks)

    assert "publishes_every_tensor" in {check.name for check in checks}
    assert [check.name for check in checks if not verdicts.holds(check.name)] == []


def test_saving_later_publishes_too(tmp_path):
    model = oneshot(tiny_llama(), RECIPE, format="stage-files", quiet=True)

    model.save_pretrained(tmp_path / "out")

    assert [path.name for path in (tmp_path / "out").glob("*.pt")] == ["000-rest.pt"]
    assert same(load_model(tmp_path / "out", device="cpu").state_dict(), model.state_dict())


def test_what_is_published_is_compressed_again_without_its_old_files(source, tmp_path):
    compress(source, tmp_path / "first")

    compress(tmp_path / "first", tmp_path / "second", format="dense")

    assert not list((tmp_path / "second").glob("*.pt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forgetful", r"Forgetful\.publish left out 34 tensors, the first is"),
        ("broken", r"Broken\.publish fails: KeyError: 'nothing'"),
    ],
)
def test_a_format_that_publishes_less_or_fails_is_named_and_nothing_is_there(source, tmp_path, name, message):
    with pytest.raises(BrokenPluginError, match=message):
        compress(source, tmp_path / "out", format=name)

    assert not (tmp_path / "out").exists()


def test_a_published_file_that_is_gone_is_told(source, tmp_path):
    compress(source, tmp_path / "out")
    (tmp_path / "out" / FILES[2]).unlink()

    with pytest.raises(CheckpointError, match=r"model\.layers\.1"):
        load_model(tmp_path / "out", device="cpu")
