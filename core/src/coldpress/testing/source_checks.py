"""What a source promises: tensors are what their names and headers say, and a model of them is built and streamed.

The setting `example` is a function that writes a small container into a folder and returns its path, as users would
name it; without one only the form is checked.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from coldpress.errors import ColdpressError
from coldpress.experts import fused_state_dict
from coldpress.models.dense import source_checkpoint
from coldpress.models.loading import load_located
from coldpress.models.location import Location
from coldpress.models.skeleton import stream_model
from coldpress.source import Source
from coldpress.testing.check import Check
from coldpress.testing.settings_checks import has_a_module, import_is_quiet
from coldpress.testing.subject import Subject
from coldpress.testing.trace import same_bits

_METHODS = ("weights", "config", "load", "tokenizer")


def signatures(subject: Subject) -> None:
    """It is made from a path, its methods take what core hands them, and every abstract one is there."""
    assert not inspect.isabstract(subject.cls), f"it lacks {', '.join(sorted(subject.cls.__abstractmethods__))}"
    inspect.signature(subject.cls).bind(Path("model"))
    for name in _METHODS:
        theirs, ours = (list(inspect.signature(getattr(cls, name)).parameters) for cls in (subject.cls, Source))
        assert theirs == ours, f"{name}({', '.join(theirs)}) where core calls {name}({', '.join(ours)})"


def knows_its_own_names(subject: Subject) -> None:
    """A name that is no model's is not found, so that a folder or an id on a hub of that name can be."""
    for name in ("nobodys-model", "path/to/model", subject.cls.__name__):
        assert subject.cls.find(name) is None, f"find({name!r}) should give None"


def refuses_what_it_cannot_read(subject: Subject) -> None:
    """A file of noise and an empty folder are an error for the user that names them, not one of Python."""
    with TemporaryDirectory() as folder:
        file, empty = Path(folder) / "noise", Path(folder) / "empty"
        file.write_bytes(b"\x93noise" * 64)
        empty.mkdir()
        for path in (file, empty):
            refusal = _refusal(subject, path)
            assert refusal is not None, f"{path.name} is read as tensors, and holds none"
            assert path.name in refusal, f"the error does not name {path.name}: {refusal}"


def tensors_are_as_announced(subject: Subject) -> None:
    """Shapes and dtypes are those of the tensors, each in memory of its own, and the files are there."""
    with _opened(subject) as location:
        weights = location.open().weights()
        if weights is None:
            return
        names = weights.names()
        assert names, "it has no tensors"
        assert len(set(names)) == len(names), "a name comes twice"
        assert weights.files, "it names no file, so a resumed run would not see that one has changed"
        assert all(Path(file).is_file() for file in weights.files), "one of its files is not there"
        for name in names:
            tensor, again = weights.read(name), weights.read(name)
            announced, found = (weights.dtype(name), tuple(weights.shape(name))), (tensor.dtype, tuple(tensor.shape))
            assert announced == found, f"{name} is announced as {announced}, and read as {found}"
            assert not tensor.is_floating_point() or tensor.isfinite().all(), f"{name} is not finite"
            kept = again.clone()
            tensor.zero_()
            assert same_bits(kept, weights.read(name)), f"{name} is other bits after what was read has been changed"


def builds_the_model(subject: Subject) -> None:
    """A model in memory has every tensor that it reads, and nothing of the container is left in its configuration."""
    with _opened(subject) as location:
        weights, model = location.open().weights(), _loaded(location)
        assert getattr(model.config, "quantization_config", None) is None, "its configuration still says quantized"
        assert not any(parameter.is_meta for parameter in model.parameters()), "a parameter has no value"
        tensors = {} if weights is None else {name: weights.read(name) for name in weights.names()}
        for name, tensor in model.state_dict().items():
            other = tensors.get(name, tensor)  # one that transformers renames has no other here
            assert torch.equal(tensor, other.to(tensor.dtype)), f"{name} has other values in the model"


def streams_the_same_model(subject: Subject) -> None:
    """Read stage by stage, the weights are those of the model in memory."""
    with _opened(subject) as location:
        checkpoint = source_checkpoint(location, location.open())
        if checkpoint is None:
            return
        whole = _loaded(location).state_dict()
        stream = stream_model(checkpoint, dtype="auto", device=torch.device("cpu"))
        for name, module in stream.model.named_modules():
            stream.read({name: module})
        streamed = fused_state_dict(stream.model)
        assert streamed.keys() == whole.keys()
        wrong = [name for name, tensor in streamed.items() if not torch.equal(tensor, whole[name])]
        assert not wrong, f"{wrong[0]} is not the same"


def _refusal(subject: Subject, path: Path) -> str | None:
    """What a source says of a path; None when it reads it."""
    try:
        source = subject.cls(path)
        source.config()
        weights = source.weights()
        for name in weights.names() if weights is not None else []:
            weights.read(name)
    except ColdpressError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{path.name}: {type(error).__name__}: {error}") from error
    return None


@contextmanager
def _opened(subject: Subject) -> Iterator[Location]:
    with TemporaryDirectory() as folder:
        path = Path(subject.settings["example"](Path(folder)))
        yield Location(str(path), path, subject.cls)


def _loaded(location: Location) -> Any:
    return load_located(location, "auto", {"trust_remote_code": False})


def _has_example(subject: Subject) -> bool:
    return "example" in subject.settings


CHECKS = (
    Check(signatures),
    Check(import_is_quiet, applies=has_a_module),
    Check(knows_its_own_names, after=("signatures",)),
    Check(refuses_what_it_cannot_read, after=("signatures",)),
    Check(tensors_are_as_announced, after=("signatures",), applies=_has_example),
    Check(builds_the_model, after=("tensors_are_as_announced",), applies=_has_example),
    Check(streams_the_same_model, after=("builds_the_model",), applies=_has_example),
)
