"""Which layers share an input, and which producers can absorb a per-channel scale of them, found by probing.

blocks = find_blocks(model)                         # no names needed
calls = capture(model, [blocks[0].name], batch)     # what a block is called with
flow = find_pairs(blocks[0].module, calls[blocks[0].name])
fold(blocks[0].module, flow.pairs[0], scale)        # the model computes what it computed
"""

from coldpress.dataflow.blocks import Block, block_lists, find_blocks, signature
from coldpress.dataflow.call import Call, capture
from coldpress.dataflow.describe import BlockKind, Description, describe, first_of_each_kind, token_batch
from coldpress.dataflow.fold import fold, unfold
from coldpress.dataflow.inputs import distinct_inputs
from coldpress.dataflow.mapping import UserMapping, parse_mappings, plain_mapping, resolve, resolve_in, unmatched
from coldpress.dataflow.pair import Consumer, Pair, Site
from coldpress.dataflow.probe import Dataflow, find_pairs
from coldpress.dataflow.product_trace import ProductTrace
from coldpress.dataflow.sharing import shared_parameters

__all__ = [
    "Block",
    "BlockKind",
    "Call",
    "Consumer",
    "Dataflow",
    "Description",
    "Pair",
    "ProductTrace",
    "Site",
    "UserMapping",
    "block_lists",
    "capture",
    "describe",
    "distinct_inputs",
    "find_blocks",
    "find_pairs",
    "first_of_each_kind",
    "fold",
    "parse_mappings",
    "plain_mapping",
    "resolve",
    "resolve_in",
    "shared_parameters",
    "signature",
    "token_batch",
    "unfold",
    "unmatched",
]
