"""A compressed folder as a dense model in memory: each layer's tensors are decoded by the format that wrote them."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coldpress import registry
from coldpress.attachment import Attached, Attachment, attach
from coldpress.bases.quantized_inputs import quantize_inputs
from coldpress.bases.without_data import without_data
from coldpress.checkpoint import Format, SchemeLookup
from coldpress.checkpoint.config import without_quantization
from coldpress.checkpoint.names import CheckpointNames, checkpoint_names
from coldpress.checkpoint.published import format_of, open_folder
from coldpress.errors import CheckpointError, ModelError
from coldpress.experts import linear_experts, linearize_experts
from coldpress.foreign import reading
from coldpress.format import AttachmentLookup
from coldpress.installed import extra_called
from coldpress.models.auto import build_model
from coldpress.models.dense_saving import SaveDense
from coldpress.models.quiet import no_bar
from coldpress.models.streaming import without_weights
from coldpress.quantized import Quantized, set_encoding
from coldpress.source import Weights
from coldpress.spelling import suggest
from coldpress.stage import class_names, find_layers, oriented

log = logging.getLogger(__name__)


def load_compressed(
    folder: Path, quantization: Mapping[str, Any], *, dtype: Any, trust_remote_code: bool = False, config: Any = None
) -> Any:
    """Build the dense model that a compressed folder stands for.

    Args:
        folder: with config.json and safetensors files.
        quantization: `quantization_config` of its config.json.
        dtype: of the weights; "auto" is what the configuration says.
        trust_remote_code: run Python code that comes with the model.
        config: use this configuration instead of the folder's.

    Returns:
        A model on the CPU whose weights are on the grid of its schemes and whose inputs are rounded where they
        are when it is served; its configuration says nothing of quantization.

    Raises:
        ModelError: it was compressed by a method that no installed format reads.
        CheckpointError: a file is damaged, or tensors are missing.
    """
    form = _format(folder, quantization)
    config = without_quantization(_config(folder, trust_remote_code) if config is None else config)
    kind = (getattr(config, "dtype", None) or torch.bfloat16) if dtype == "auto" else dtype
    skeleton = _skeleton(config, kind, trust_remote_code)
    reader = open_folder(folder, form)
    weights, quantized = _decode(reader, skeleton, form, form.read(quantization), kind)
    attached = _take_attachments(reader, skeleton, form, form.attachments(quantization), weights)
    _check_shapes(skeleton, weights, folder)
    model, missing, extra = (
        _filled(skeleton, weights, dtype) if linear_experts(skeleton) else _built(skeleton, weights, kind)
    )
    if missing:
        raise CheckpointError(f"{str(folder)!r} lacks {len(missing)} tensors of the model, the first is {missing[0]!r}")
    if extra:
        log.warning("not read from %s: %s", folder, ", ".join(extra))
    one: dict[tuple[Any, ...], Tensor] = {}
    for name, attachment, buffers in attached:
        cast = {part: x.to(kind) if x.is_floating_point() else x for part, x in buffers.items()}
        if attachment.shared:
            first = {part: one.setdefault((part, x.shape), x) for part, x in cast.items()}
            cast = {part: first[part] if torch.equal(first[part], x) else x for part, x in cast.items()}
        attach(model.get_submodule(name), attachment, cast)
    for layer in find_layers((name, model.get_submodule(name)) for name in quantized):
        quantize_inputs(layer.module, quantized[layer.name])
        set_encoding(layer.module, quantized[layer.name], layer.weight)
    vars(model)["save_pretrained"] = SaveDense(model)
    return model


def empty_compressed(
    folder: Path, quantization: Mapping[str, Any], *, dtype: Any, trust_remote_code: bool = False, config: Any = None
) -> Any:
    """What `load_compressed` builds, without weights: every tensor is on the meta device, and none of them is read.

    Args:
        folder: as for `load_compressed`, like all others.
        quantization: of its config.json.
        dtype: of the weights.
        trust_remote_code: run Python code that comes with the model.
        config: instead of the folder's.

    Raises:
        ModelError: as `load_compressed`.
        CheckpointError: a header is damaged.
    """
    form = _format(folder, quantization)
    config = without_quantization(_config(folder, trust_remote_code) if config is None else config)
    kind = (getattr(config, "dtype", None) or torch.bfloat16) if dtype == "auto" else dtype
    model: Any = _skeleton(config, kind, trust_remote_code)
    model.tie_weights()
    reader, schemes, names = open_folder(folder, form), form.read(quantization), checkpoint_names(model)
    stored = {names.in_memory(name).rpartition(".")[0] for name in reader.names()}
    for layer in find_layers(model.named_modules()):
        scheme = schemes(names.layer(layer.name), layer.classes) if layer.name in stored else None
        if scheme is not None:
            quantized = without_data(scheme, layer.weight)
            quantize_inputs(layer.module, quantized)
            set_encoding(layer.module, quantized, layer.weight)
    for name, attachment, buffers in _take_attachments(reader, model, form, form.attachments(quantization), {}):
        attach(model.get_submodule(name), attachment, {part: x.to("meta") for part, x in buffers.items()})
    return model.eval()


def _config(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    with reading(f"transformers cannot read the configuration of {str(folder)!r}", ModelError):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)


def _skeleton(config: Any, dtype: torch.dtype, trust_remote_code: bool) -> nn.Module:
    """The dense model without weights, its experts as layers."""
    with without_weights():
        skeleton: nn.Module = build_model(config, dtype=dtype, trust_remote_code=trust_remote_code)
    linearize_experts(skeleton)
    return skeleton


def _check_shapes(skeleton: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse tensors of another shape than those of the model that the configuration describes.

    Raises:
        CheckpointError: names the first one.
    """
    names, shapes = checkpoint_names(skeleton), {name: x.shape for name, x in skeleton.named_parameters()}
    for name, tensor in weights.items():
        wanted = shapes.get(names.in_memory(name), tensor.shape)
        if tensor.shape != wanted:
            raise CheckpointError(
                f"{str(folder)!r}: {name} is {tuple(tensor.shape)}, and {tuple(wanted)} in the model that config.json "
                "describes: it is another model's, or the model was changed without its configuration"
            )


def _built(skeleton: Any, weights: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Any, list[str], list[str]]:
    """As `_filled`, by transformers itself, which knows names of checkpoints that are not those in memory."""
    with no_bar():
        model, loading = type(skeleton).from_pretrained(
            None, config=skeleton.config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    return model, sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])


def _take_attachments(
    reader: Weights, skeleton: nn.Module, form: Format, lookup: AttachmentLookup, weights: dict[str, Tensor]
) -> list[tuple[str, Attachment, dict[str, Tensor]]]:
    """Module, attachment and its buffers, of all attachments; their tensors are no weights.

    Raises:
        CheckpointError: a buffer is missing.
    """
    names, own = checkpoint_names(skeleton), defaultdict(set)
    for full in reader.names():
        owner, _, part = names.in_memory(full).rpartition(".")
        own[owner].add(part)
    found = []
    for name, module in skeleton.named_modules():
        for attachment in lookup(names.layer(name), class_names(module), own[name]):
            buffers = form.attachment_buffers(Attached.on(names.layer(name), module, attachment), reader)
            if buffers is None:
                buffers = _own_buffers(name, attachment, own[name], reader, names)
            for part in buffers:
                weights.pop(names.on_disk(f"{name}.{part}"), None)
            found.append((name, attachment, dict(buffers)))
    modules = dict(skeleton.named_modules())
    for full in list(weights):  # what a format writes for attachments is under no module of the model
        owner = names.in_memory(full).rpartition(".")[0]
        if found and owner not in modules and owner.rpartition(".")[0] in modules:
            del weights[full]
    return found


def _own_buffers(
    name: str, attachment: Attachment, own: set[str], reader: Weights, names: CheckpointNames
) -> dict[str, Tensor]:
    """The buffers of an attachment that are under the name of its module."""
    missing = set(attachment.buffers()) - own
    if missing:
        raise CheckpointError(f"{name} lacks {', '.join(sorted(missing))} of its {attachment.kind}")
    return {part: reader.read(names.on_disk(f"{name}.{part}")) for part in attachment.buffers()}


def _filled(model: Any, weights: Mapping[str, Tensor], dtype: Any) -> tuple[Any, list[str], list[str]]:
    """The model with these weights by their names in the checkpoint, which are missing, and which are not its own."""
    names = checkpoint_names(model)
    weights = {names.in_memory(name): tensor for name, tensor in weights.items()}
    if dtype != "auto":
        weights = {name: x.to(dtype) if x.is_floating_point() else x for name, x in weights.items()}
    loading = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name in loading.missing_keys if _tensor(model, name).is_meta]
    return model.eval(), sorted(missing), sorted(loading.unexpected_keys)


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, part = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), part)
    return found


def _format(folder: Path, quantization: Mapping[str, Any]) -> Format:
    method = quantization.get("quant_method")
    if not isinstance(method, str):
        raise CheckpointError(f"{str(folder)!r}: quantization_config of config.json names no quant_method")
    form = format_of(quantization)
    if form is None:
        names = sorted(registry.names("formats"))
        extra = extra_called(method)
        remedy = f"pip install 'coldpress[{extra}]'" if extra else "start from the dense model"
        raise ModelError(
            f"{str(folder)!r} is already compressed, with {method!r}, which no installed format or source reads"
            f"{suggest(method, names)} (formats: {', '.join(names) or 'none'}); {remedy}"
        )
    return form


def _decode(
    reader: Weights, skeleton: nn.Module, form: Format, schemes: SchemeLookup, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Quantized]]:
    """All weights of the dense model by name, and what is quantized by the name of its layer."""
    tensors: dict[str, dict[str, Tensor]] = {}  # layer -> suffix -> tensor
    layers = {layer.name: layer.module for layer in find_layers(skeleton.named_modules())}
    names, homes = checkpoint_names(skeleton), {}
    weights: dict[str, Tensor] = {}
    for name in reader.names():
        home = names.in_memory(name).rpartition(".")[0]
        owner, _, suffix = name.rpartition(".")
        if home in layers:
            homes[owner] = home
            tensors.setdefault(owner, {})[suffix] = reader.get(name)
        else:
            weights[name] = reader.get(name)
    quantized: dict[str, Quantized] = {}
    for name, found in tensors.items():
        home = homes[name]
        classes = class_names(layers[home])
        scheme = schemes(name, classes)
        if scheme is not None:
            if "weight" in found:
                found["weight"] = oriented(found["weight"], classes)
            quantized[home] = form.restore(found, scheme)
            found = {suffix: tensor for suffix, tensor in found.items() if suffix in ("weight", "bias")}
            if quantized[home].codes is not None:
                found["weight"] = quantized[home].weight(dtype)
            found["weight"] = oriented(found["weight"], classes).contiguous()
        weights.update({f"{name}.{suffix}": tensor for suffix, tensor in found.items()})
    return weights, quantized
