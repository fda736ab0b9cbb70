"""Mappings of llm-compressor's SpinQuantModifier: names of what is rotated; here they are checked, not needed.

{embedding: re:.*embed_tokens$, attn_q: re:.*q_proj$, ..., mlp_in: [re:.*up_proj$, ...], mlp_out: [re:.*down_proj$]}
[{norm: re:.*input_layernorm$, linears: [re:.*q_proj$, ...]}, ...]
"""

from collections.abc import Iterable, Mapping
from typing import Any

from coldpress.plugin import State, TargetError, block_names, matches_name, rotations_of, stream_of

_READERS = ("attn_q", "attn_k", "attn_v", "mlp_in", "lm_head")
_WRITERS = ("embedding", "attn_o", "mlp_out")
_OTHERS = ("attn", "attn_head_dim")


def check_mappings(state: State, mappings: Any) -> None:
    """See that a mapping is true; what is null in it is not looked at.

    Raises:
        TargetError: it has unknown keys, matches nothing, or names a layer that does not read or write the stream, or
            a module of attention without value heads.
    """
    if not isinstance(mappings, Mapping) or mappings.keys() - {*_READERS, *_WRITERS, *_OTHERS}:
        known = ", ".join((*_WRITERS, *_READERS, *_OTHERS))
        raise TargetError(f"mappings is a table with some of {known}; got {mappings!r}")
    stream = stream_of(state)
    readers = {site.parameter.removesuffix(".weight") for site in stream.readers}
    writers = {site.parameter.removesuffix(".weight") for site in stream.writers}
    given = {key: patterns for key, patterns in mappings.items() if patterns is not None}
    for key, patterns in given.items():
        if key in _READERS or key in _WRITERS:
            sites, role = (readers, "read") if key in _READERS else (writers, "add to")
            for name in _matched(state, f"mappings.{key}", patterns):
                if name not in sites:
                    raise TargetError(f"mappings.{key}: {name} does not {role} the residual stream")
    heads = [one for name in block_names(state.model) for one in rotations_of(state, name).heads]
    for name in _matched(state, "mappings.attn", given.get("attn", ())):
        if not any(one.pair.producer.startswith(f"{name}.") for one in heads):
            raise TargetError(f"mappings.attn: {name} has no value heads in it")
    size, found = given.get("attn_head_dim"), {one.head_dim for one in heads}
    if size is not None and found - {size}:
        raise TargetError(f"mappings.attn_head_dim is {size}; value heads have {', '.join(map(str, sorted(found)))}")


def check_norm_mappings(state: State, mappings: Any) -> None:
    """See that norms and the layers that read them are those of the model.

    Raises:
        TargetError: an entry is not understood, matches nothing, or leaves out a reader or names a false one.
    """
    entries = mappings if isinstance(mappings, list | tuple) else [mappings]
    readers = {pair.producer: set(pair.consumers) for pair in stream_of(state).norms}
    for entry in entries:
        if not isinstance(entry, Mapping) or entry.keys() != {"norm", "linears"}:
            raise TargetError(f"norm_mappings has entries with norm and linears; got {entry!r}")
        linears = set(_matched(state, "norm_mappings.linears", entry["linears"]))
        norms = _matched(state, "norm_mappings.norm", entry["norm"])
        expected = {name for norm in norms for name in readers.get(norm, ())}
        wrong = sorted(linears ^ expected)
        if wrong:
            problem = "is not listed and reads" if wrong[0] in expected else "is listed and does not read"
            raise TargetError(f"norm_mappings: {wrong[0]} {problem} {entry['norm']!r}")


def _matched(state: State, where: str, patterns: str | Iterable[str]) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = [name for name, _ in state.model.named_modules() if name]
    found = []
    for pattern in patterns:
        matched = [name for name in names if matches_name(pattern, name)]
        if not matched:
            raise TargetError(f"{where}: {pattern!r} matches no module")
        found += matched
    return found
