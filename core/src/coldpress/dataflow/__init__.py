"""Which layers share an input, and which producers can absorb a per-channel scale of them, found by probing.

blocks = find_blocks(model)                         # no names needed
calls = capture(model, [blocks[0].name], batch)     # what a block is called with
flow = find_pairs(blocks[0].module, calls[blocks[0].name])
fold(blocks[0].module, flow.pairs[0], scale)        # the model computes what it computed
"""

from coldpress.dataflow.blocks import signature
from coldpress.dataflow.call import capture
from coldpress.dataflow.describe import BlockKind, describe, token_batch
from coldpress.dataflow.fold import fold
from coldpress.dataflow.mapping import parse_mappings, plain_mapping, resolve_in, unmatched
from coldpress.dataflow.pair import Pair
from coldpress.dataflow.probe import Dataflow, find_pairs
from coldpress.dataflow.sharing import shared_parameters

__all__ = [
    "BlockKind",
    "Dataflow",
    "Pair",
    "capture",
    "describe",
    "find_pairs",
    "fold",
    "parse_mappings",
    "plain_mapping",
    "resolve_in",
    "shared_parameters",
    "signature",
    "token_batch",
    "unmatched",
]
