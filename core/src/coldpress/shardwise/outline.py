"""Outline: a tree of modules made of the names and shapes of a checkpoint's tensors, in place of the model.

model.layers.0.self_attn.q_proj.weight [2048, 2048]    Linear
model.embed_tokens.weight                              Embedding: no target means it but its name, or `Embedding`
lm_head.weight, ...mlp.gate.weight                     Linear, and spared: left alone unless a target names it
...mlp.experts.gate_up_proj [8, 1024, 512]             experts.0.gate_proj, experts.0.up_proj, ...
...linear_attn.conv1d.weight [8192, 1, 4]              left as it is

What a layer is, is told by evidence: the number of dimensions, the name, and a bias beside it.  All weights are on the
meta device.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from attrs import field, frozen
from torch import nn

from coldpress.arguments import DEFAULT_IGNORE
from coldpress.checkpoint.config import tables
from coldpress.checkpoint.named import Part
from coldpress.errors import CheckpointError
from coldpress.shardwise.joint import Joint, joint_experts
from coldpress.source import Weights
from coldpress.stage import matches_name

_EMBEDDING = re.compile(
    r"\w*embed(s|ding|dings|der|s?_\w+)?|emb|wte|wpe|relative_attention_bias|\w*position_embeddings?"
)
_HEADS = ("lm_head", "head", "output", "output_layer", "embed_out", "score")
_NORM = re.compile(r"\w*norm\w*|ln_\w+")
_MTP = re.compile(r"(.*\.)?mtp\w*\..*")
_MTP_PARTS = ("eh_proj", "enorm", "hnorm", "shared_head")
_NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Linear(nn.Module):
    """A weight, [O, I], that is taken for that of a linear layer."""


class Conv1D(nn.Module):
    """One that is stored as [I, O], which its bias tells."""


class Embedding(nn.Module):
    """A weight that is taken for an embedding."""


class Tensors(nn.Module):
    """Whatever else lies under one name."""


@frozen(eq=False)
class Matrix:
    """Where the weight of a layer is.

    Attributes:
        tensor: its name among the tensors of the dense model.
        shape: as it is stored.
        part: which part of a joint tensor it is; None where it is one by itself.
    """

    tensor: str
    shape: tuple[int, ...]
    part: Part | None = None


@frozen(eq=False)
class Outline:
    """What stands in for a model.

    Attributes:
        model: the tree; its layers have weights on the meta device.
        matrices: layer name to where its weight is.
        joint: experts in joint tensors that are layers in the tree, by the name of their module.
        spared: layers that are left alone unless a target names them, and why.
        refused: tensors of three dimensions that may be experts and are no layers, and why.
        left: other tensors of two dimensions or more that are no layers, and why.
    """

    model: nn.Module
    matrices: Mapping[str, Matrix]
    joint: Mapping[str, Joint] = field(factory=dict)
    spared: Mapping[str, str] = field(factory=dict)
    refused: Mapping[str, str] = field(factory=dict)
    left: Mapping[str, str] = field(factory=dict)


def outline_of(weights: Weights, config: Mapping[str, Any], *, dtype: torch.dtype | None) -> Outline:
    """The tree of a checkpoint.

    Args:
        weights: the tensors of the dense model.
        config: `config.json`, parsed; only its model types and sizes of vocabularies are looked at.
        dtype: of the model, in which weights are read that the files hold whole; None for the dtype of each.

    Raises:
        CheckpointError: a weight holds whole numbers or codes, and no source says what they stand for.
    """
    names = natural_order(weights.names())
    joint, refused = joint_experts(weights, config)
    taken = {tensor for one in joint.values() for tensor in one.tensors}
    turned = _turned(weights, names)
    found = _Found()
    for name in names:
        owner, _, part = name.rpartition(".")
        shape = tuple(weights.shape(name))
        if name in taken or name in refused:
            _check_number(weights, name)
        if name in taken or not owner:
            continue
        if len(shape) > 2 and name not in refused:
            found.left[name] = f"a tensor of {len(shape)} dimensions, which is no linear layer"
        if part != "weight" or len(shape) != 2:
            continue
        _check_number(weights, name)
        found.matrices[owner] = Matrix(name, shape)
        found.kinds[owner] = _kind(owner, turned)
    for one in joint.values():
        found.matrices.update({layer: Matrix(p.tensor, one.shape(p), p) for layer, p in one.layers.items()})
    _spare(found, names, _vocabularies(config))
    model = _tree(found, weights, dtype)
    return Outline(model, found.matrices, joint, found.spared, refused, found.left)


@frozen(eq=False)
class _Found:
    """What an outline is made of, while it is made."""

    matrices: dict[str, Matrix] = field(factory=dict)
    kinds: dict[str, type[nn.Module]] = field(factory=dict)
    spared: dict[str, str] = field(factory=dict)
    left: dict[str, str] = field(factory=dict)


def natural_order(names: Iterator[str] | list[str]) -> list[str]:
    """Names in the order of a model: numbers as numbers, `layers.2` before `layers.10`."""
    return sorted(
        names, key=lambda name: [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
    )


def module_tree(layers: Mapping[str, nn.Module]) -> nn.Module:
    """A tree of modules with these at its leaves, by their names from the root."""
    root = Tensors()
    nodes: dict[str, nn.Module] = {"": root}

    def node(name: str) -> nn.Module:
        if name not in nodes:
            parent, _, last = name.rpartition(".")
            nodes[name] = Tensors()
            node(parent).add_module(last, nodes[name])
        return nodes[name]

    for name, module in layers.items():
        parent, _, last = name.rpartition(".")
        for part, child in nodes[name].named_children() if name in nodes else ():
            module.add_module(part, child)  # a layer with others below it
        nodes[name] = module
        node(parent).add_module(last, module)
    return root


def layer_module(kind: type[nn.Module], weight: torch.Tensor) -> nn.Module:
    """A leaf of the tree."""
    module = kind()
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def _tree(found: _Found, weights: Weights, dtype: torch.dtype | None) -> nn.Module:
    leaves = {}
    for name in natural_order(list(found.matrices)):
        matrix = found.matrices[name]
        kind = found.kinds.get(name, Linear)
        whole = not is_decoded(weights, matrix.tensor)
        kept = dtype if whole and dtype is not None else weights.dtype(matrix.tensor)
        empty = torch.empty(matrix.shape, dtype=kept, device="meta")
        leaves[name] = layer_module(kind, empty)
    return module_tree(leaves)


def is_decoded(weights: Weights, name: str) -> bool:
    """Whether a tensor is computed from others when it is read."""
    return tuple(weights.made_of(name)) != (name,)


def is_parameter(outline: Outline, name: str) -> bool:
    """Whether a tensor is a weight or a bias, by its name; others may be buffers, such as masks, which hold infinities.

    Args:
        outline: of the checkpoint.
        name: of a tensor of the dense model.
    """
    experts = {tensor for one in outline.joint.values() for tensor in one.tensors}
    return name.rpartition(".")[2] in ("weight", "bias") or name in experts or name in outline.refused


def _check_number(weights: Weights, name: str) -> None:
    dtype = weights.dtype(name)
    if dtype not in _NUMBERS:
        raise CheckpointError(
            f"tensor {name!r} has the dtype {str(dtype).removeprefix('torch.')} where a layer has its weight, and "
            "config.json says of no quantization that explains it: name the folder that was written together with its "
            "config.json, or install the source that reads it"
        )


def _kind(owner: str, turned: frozenset[str]) -> type[nn.Module]:
    last = owner.rpartition(".")[2]
    if _EMBEDDING.fullmatch(last) or (last == "shared" and not _in_block(owner)):  # T5's and BART's
        return Embedding
    return Conv1D if last in turned else Linear


def _turned(weights: Weights, names: list[str]) -> frozenset[str]:
    """Last names of layers whose weights are [I, O]: where shapes differ, their biases are as long as a row."""
    votes, known = dict[str, set[bool]](), set(names)
    for name in names:
        owner, _, part = name.rpartition(".")
        if part != "bias" or len(weights.shape(name)) != 1:
            continue
        shape = tuple(weights.shape(f"{owner}.weight")) if f"{owner}.weight" in known else ()
        if len(shape) == 2 and shape[0] != shape[1]:
            length = weights.shape(name)[0]
            if length in shape:
                votes.setdefault(owner.rpartition(".")[2], set()).add(length == shape[1])
    return frozenset(last for last, turned in votes.items() if turned == {True})


def _in_block(name: str) -> bool:
    return re.search(r"\.\d+\.", f".{name}") is not None


def _vocabularies(config: Mapping[str, Any]) -> frozenset[int]:
    """Sizes of the vocabularies that a configuration names."""
    sizes = (table.get(key) for table in tables(config) for key in ("vocab_size", "decoder_vocab_size"))
    return frozenset(size for size in sizes if isinstance(size, int))


def _spare(found: _Found, names: list[str], vocabularies: Collection[int]) -> None:
    """Note the layers that a class as a target does not mean: heads, routers, norms, multi-token prediction."""
    predicting = _prediction_blocks(names)
    for name in found.matrices:
        last = name.rpartition(".")[2]
        prefix = next((prefix for prefix in predicting if name.startswith(prefix)), None)
        if found.kinds.get(name) is Embedding:
            found.spared[name] = "an embedding, by its name"
        elif last in _HEADS and not _in_block(name):
            found.spared[name] = "the output head, by its name"
        elif found.matrices[name].shape[0] in vocabularies and not _in_block(name):
            found.spared[name] = "an embedding or output head, which has a row for each token"
        elif matches_name(DEFAULT_IGNORE[1], name):
            found.spared[name] = "a router or gate of experts, by its name"
        elif _NORM.fullmatch(last):
            found.spared[name] = "a norm, by its name"
        elif prefix is not None or _MTP.fullmatch(name):
            found.spared[name] = "multi-token prediction, which engines read beside the model"


def _prediction_blocks(names: list[str]) -> list[str]:
    """Prefixes of blocks for multi-token prediction: layers with a projection of two inputs, beyond the others."""
    found = set()
    for name in names:
        match = re.fullmatch(rf"((?:.*\.)?layers\.\d+\.)({'|'.join(_MTP_PARTS)})\..*", name)
        if match:
            found.add(match[1])
    return sorted(found)
