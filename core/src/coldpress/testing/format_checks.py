"""What a checkpoint format promises: what it writes it reads, bit for bit, and what it cannot write it refuses."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from attrs import evolve
from torch import nn

from coldpress.checkpoint import CheckpointReader, CheckpointWriter, Format
from coldpress.checkpoint.output import Output
from coldpress.errors import CheckpointError, ModelError, SchemeError
from coldpress.format import Stored
from coldpress.quantized import Quantized
from coldpress.schemes import QuantizationArgs, Scheme, check_fit, check_supported, preset, preset_names
from coldpress.source import Weights
from coldpress.testing.check import Check
from coldpress.testing.interrupt import killed_publishing
from coldpress.testing.job_checks import check_same_logits
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama, tiny_tokenizer
from coldpress.testing.rounding import Rounding, rounded_weight
from coldpress.testing.settings_checks import has_a_module, import_is_quiet, settings_class
from coldpress.testing.subject import Subject
from coldpress.testing.trace import same_bits
from coldpress.testing.trial import run_trial

_LAYER = "model.layers.0.mlp.up_proj"
_SHAPES = ((256, 128), (24, 48), (40, 136))  # usual, small, and one that no block and no word of 32 bits divides
_TENSORS = ("codes", "scale", "zero_point", "global_scale", "input_scale", "input_zero_point")
_SIMPLE: tuple[dict[str, Any], ...] = (
    {"scheme": "W8A16", "group_size": -1},
    {"scheme": "W4A16"},
    {"scheme": "W8A8"},
    {"scheme": "FP8_DYNAMIC"},
)
_SERVED = ("W4A16", "W4A16_ASYM", "W8A8", "FP8_DYNAMIC", "FP8")


def writes_something(subject: Subject) -> None:
    """It can write one scheme at least."""
    assert any(_writable(subject)), "check() refuses every scheme that can be quantized"


def refuses_by_name(subject: Subject) -> None:
    """What it cannot write is a SchemeError that names the layer, before anything is computed."""
    form = _format(subject)
    for scheme in _schemes():
        for shape in _SHAPES:
            refusal = _refusal(form, scheme, shape)
            assert refusal is None or _LAYER in refusal, f"the error does not name the layer: {refusal}"


def round_trip(subject: Subject) -> None:
    """What is written is read again, bit for bit; a format of plain weights writes what the codes stand for."""
    form = _format(subject)
    for scheme, shape, dtype in _writable(subject):
        quantized = _quantized(scheme, shape, dtype)
        tensors = form.tensors(quantized)
        place = f"{_name(scheme)}, {shape}, {dtype}"
        for suffix, tensor in tensors.items():
            assert tensor.is_contiguous(), f"{place}: {suffix} is not contiguous, so it cannot be stored"
        config = form.config({_LAYER: scheme}, [])
        if config is None:
            assert set(tensors) == {"weight"}, f"{place}: a plain model has no {', '.join(tensors)}"
            assert same_bits(tensors["weight"], quantized.weight(dtype)), f"{place}: not what the codes stand for"
            continue
        read = form.read(_as_json(config))(_LAYER, ("Linear", "Module"))
        assert read is not None, f"{place}: the layer is not quantized when it is read"
        again = form.restore({**tensors, "bias": torch.ones(1)}, read)
        own = scheme.weights is not None and scheme.weights.scale_dtype is not None
        if own and quantized.scale is not None and again.scale is not None:
            again = evolve(again, scale=again.scale.to(quantized.scale.dtype))  # the disk has another dtype for it
        wrong = [part for part in _TENSORS if not same_bits(getattr(quantized, part), getattr(again, part))]
        assert not wrong, f"{place}: {', '.join(wrong)} is not what was written"


def config_reads_back(subject: Subject) -> None:
    """The configuration is plain JSON; from it every layer gets its own scheme, and the others none."""
    form = _format(subject)
    found = {_name(scheme): scheme for scheme, _, _ in _writable(subject)}
    schemes = {f"model.layers.{i}.mlp.up_proj": scheme for i, scheme in enumerate(found.values())}
    for name, scheme in schemes.items():
        _check_config(form, {name: scheme}, "lm_head")
    try:
        form.complete(schemes, dict.fromkeys(schemes, _SHAPES[0]))
    except SchemeError:
        return  # it knows one scheme for all layers
    _check_config(form, schemes, "lm_head")


def missing_tensor_is_reported(subject: Subject) -> None:
    """A layer that lacks a tensor is a CheckpointError, not a KeyError."""
    form = _format(subject)
    scheme, _, _ = next(_writable(subject))
    config = form.config({_LAYER: scheme}, [])
    read = None if config is None else form.read(_as_json(config))(_LAYER, ("Linear",))
    try:
        form.restore({}, read or scheme)
    except CheckpointError:
        return
    raise AssertionError("a layer without any tensor was restored")


def counts_its_weights(subject: Subject) -> None:
    """What `inspect` counts, where the format counts at all: as many weights as a layer has, and no bias."""
    form = _format(subject)
    for scheme, shape, dtype in _writable(subject):
        config = form.config({_LAYER: scheme}, [])
        if config is None:
            return
        tensors = {**form.tensors(_quantized(scheme, shape, dtype)), "bias": torch.ones(shape[0])}
        stored = {suffix: Stored(x.dtype, tuple(x.shape), x.clone) for suffix, x in tensors.items()}
        read = form.read(_as_json(config))(_LAYER, ("Linear", "Module"))
        counts = form.count_weights(stored, read or scheme)
        place = f"{_name(scheme)}, {shape}, {dtype}"
        if counts:
            assert set(counts) == set(tensors) - {"bias"}, f"{place}: it counts {', '.join(counts)}"
            assert sum(counts.values()) == prod(shape), f"{place}: it counts {sum(counts.values())} of {prod(shape)}"
    plain = {"weight": Stored(torch.float32, (4, 4), partial(torch.zeros, 4, 4))}
    assert not form.count_weights(plain, next(_writable(subject))[0]), "it takes a plain weight for a quantized one"


def publishes_every_tensor(subject: Subject) -> None:
    """What `publish` writes `open` reads again, bit for bit; killed while it publishes, a run goes on to the same."""
    form = _format(subject)
    settings = next(one for one in _SIMPLE if _can(form, _complete(form, _preset(**one)), _SHAPES[0]))
    with TemporaryDirectory() as folder:
        plain, whole, killed = (Path(folder) / name for name in ("plain", "whole", "killed"))
        with mock.patch.object(subject.cls, "publish", Format.publish):
            _write(form, settings, plain)
        expected = CheckpointReader(plain)
        _write(form, settings, whole)
        _check_tensors(form.open(whole), expected)
        with killed_publishing(after=len(expected.names()) // 2):
            _write(form, settings, killed)
        assert not killed.exists(), "there is a checkpoint although publishing was interrupted"
        _write(form, settings, killed)
        _check_tensors(form.open(killed), expected)


def save_load(subject: Subject) -> None:
    """A model that is saved and loaded again says what it said in memory."""
    for name in _SERVED:
        scheme = _complete(_format(subject), preset(name))
        if not _can(_format(subject), scheme, _SHAPES[0]):
            continue
        static = scheme.input_activations is not None and scheme.input_activations.dynamic is False
        if static and not _has_observers():
            continue
        _check_saved(subject, tiny_llama(dtype=torch.bfloat16), name)
    if _can(_format(subject), _complete(_format(subject), preset("W8A16", group_size=-1)), _SHAPES[0]):
        with suppress(ModelError):  # a container may have no place for this architecture
            _check_saved(subject, tiny_conv1d(), "W8A16")  # stores its weights [I, O]; the head is tied


def _check_saved(subject: Subject, model: nn.Module, scheme: str) -> None:
    import coldpress  # the public name, which loads transformers

    size = -1 if scheme == "W8A16" else None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        output = Output(CheckpointWriter(path), _format(subject))
        modifier = Rounding(scheme=scheme, group_size=size, ignore=["lm_head"])
        trial = run_trial(modifier, model=model, output=output, tokenizer=tiny_tokenizer())
        plain = "quantization_config" not in json.loads((path / "config.json").read_text(encoding="utf-8"))
        loaded: Any = coldpress.load_model(str(path), dtype="auto", device="cpu")
        if not plain or preset(scheme).input_activations is None:  # plain weights say nothing of activations
            check_same_logits(trial.model, loaded, batches(rows=2))


def _write(form: Format, settings: Mapping[str, Any], path: Path) -> None:
    modifier = Rounding(**settings, ignore=["lm_head"])
    run_trial(modifier, output=Output(CheckpointWriter(path), form), tokenizer=tiny_tokenizer())


def _check_tensors(found: Weights | None, expected: Weights) -> None:
    assert found is not None, "it publishes a container of its own, and open() gives None"
    names = set(found.names())
    assert names == set(expected.names()), f"tensors come or go: {', '.join(sorted(names ^ set(expected.names())))}"
    wrong = [name for name in sorted(names) if not same_bits(found.read(name), expected.read(name))]
    assert not wrong, f"{wrong[0]} is not what was published"
    assert all(Path(file).is_file() for file in found.files), "one of the files that it names is not there"


def _check_config(form: Format, schemes: dict[str, Scheme], ignored: str) -> None:
    config = form.config(schemes, [ignored])
    if config is None:
        return
    assert config.get("quant_method"), "quantization_config has no quant_method, so no reader is found"
    lookup = form.read(_as_json(config))
    for name, scheme in schemes.items():
        read = lookup(name, ("Linear", "Module"))
        assert read is not None, f"{name} is not quantized when it is read"
        same = evolve(read, targets=(), format=None) == evolve(scheme, targets=(), format=None)
        assert same, f"{name}: written {scheme}, read {read}"
    assert lookup(ignored, ("Linear", "Module")) is None, f"{ignored} is ignored, and quantized when it is read"


def _schemes() -> Iterator[Scheme]:
    """Every preset, and what presets leave out: other groups, one scale a channel or tensor, both symmetries."""
    yield from (preset(name) for name in preset_names())
    for num_bits in range(2, 9):
        for symmetric in (True, False):
            for where in ({"group_size": 16}, {"strategy": "channel"}, {"strategy": "tensor"}):
                args = QuantizationArgs.from_dict({"num_bits": num_bits, "symmetric": symmetric, **where})
                yield Scheme(targets=("Linear",), weights=args)
    inputs = QuantizationArgs(symmetric=False)  # static, with a zero point
    yield Scheme(targets=("Linear",), weights=QuantizationArgs(strategy="channel"), input_activations=inputs)


def _preset(scheme: str, group_size: int | None = None) -> Scheme:
    return preset(scheme, group_size=group_size)


def _writable(subject: Subject) -> Iterator[tuple[Scheme, tuple[int, int], torch.dtype]]:
    """What can be quantized and the format says it can write."""
    form = _format(subject)
    for scheme in _schemes():
        for shape in _SHAPES:
            complete = form.complete({_LAYER: scheme}, {_LAYER: shape})[_LAYER]
            if _can(form, complete, shape):
                yield from ((complete, shape, dtype) for dtype in (torch.float32, torch.bfloat16))


def completes_once(subject: Subject) -> None:
    """What it has completed stays as it is, and every layer keeps its place."""
    form = _format(subject)
    for scheme in _schemes():
        for shape in _SHAPES:
            shapes = {_LAYER: shape, "lm_head": shape}
            once = form.complete(dict.fromkeys(shapes, scheme), shapes)
            assert list(once) == list(shapes), f"{_name(scheme)}: layers come or go"
            assert dict(form.complete(once, shapes)) == dict(once), f"{_name(scheme)}: completed twice, it is another"


def _complete(form: Format, scheme: Scheme) -> Scheme:
    return form.complete({_LAYER: scheme}, {_LAYER: _SHAPES[0]})[_LAYER]


def _can(form: Format, scheme: Scheme, shape: tuple[int, int]) -> bool:
    try:
        check_supported(scheme)
        check_fit(scheme, shape)
    except SchemeError:
        return False
    return _refusal(form, scheme, shape) is None


def _refusal(form: Format, scheme: Scheme, shape: tuple[int, int]) -> str | None:
    """What a format says to a scheme that it cannot write; None when it can."""
    try:
        form.check(scheme, _LAYER, shape)
    except SchemeError as error:
        return str(error)
    return None


def _quantized(scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype) -> Quantized:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)  # [O, I]
    return rounded_weight(weight, scheme)


def _format(subject: Subject) -> Format:
    form: Format = subject.make()
    return form


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    text: dict[str, Any] = json.loads(json.dumps(config))
    return text


def _name(scheme: Scheme) -> str:
    return json.dumps({name: args for name, args in scheme.to_dict().items() if args}, sort_keys=True)


def _has_observers() -> bool:
    from coldpress import registry
    from coldpress.arguments import DEFAULT_ACTIVATION_OBSERVER

    names = [plugin.name for plugin in registry.available("observers")]
    return DEFAULT_ACTIVATION_OBSERVER in names and "static_minmax" in names


def _publishes(subject: Subject) -> bool:
    """Whether it has a container of its own, and reads that itself rather than by a source."""
    return subject.cls.publish is not Format.publish and subject.cls.open is not Format.open


def _is_installed(subject: Subject) -> bool:
    return subject.installed  # loading finds the format by its name


CHECKS = (
    Check(settings_class),
    Check(import_is_quiet, applies=has_a_module),
    Check(writes_something),
    Check(refuses_by_name),
    Check(completes_once),
    Check(round_trip, after=("writes_something",)),
    Check(config_reads_back, after=("writes_something",)),
    Check(missing_tensor_is_reported, after=("writes_something",)),
    Check(counts_its_weights, after=("round_trip", "config_reads_back")),
    Check(publishes_every_tensor, after=("round_trip",), applies=_publishes),
    Check(save_load, after=("writes_something", "round_trip"), applies=_is_installed),
)
