"""The arithmetic of quantization, in pure torch: no files, no models, no devices named.

The legend of every file: `O` out, `I` in, `T` tokens, `G` groups, `g` columns of a group, `W` words.
Scales, zero points, codes and the numbers they stand for are those of the library compressed-tensors, bit for bit.
"""

from coldpress.numerics.codes import check_codes, check_input_qparams, check_qparams
from coldpress.numerics.error import overwrite, relative_error
from coldpress.numerics.factor import Factor, factorize
from coldpress.numerics.finite import check_finite, is_finite
from coldpress.numerics.gram import folded_gram, gram, unfolded
from coldpress.numerics.group import group, scale_shape, ungrouped
from coldpress.numerics.hadamard import hadamard_block_sizes, hadamard_matrix, hadamard_orders
from coldpress.numerics.mask import smallest, smallest_in_groups
from coldpress.numerics.pack import pack_int32, pack_rows_int32, unpack_int32, unpack_rows_int32
from coldpress.numerics.pack_float import decode_exponents, encode_exponents, pack_floats, unpack_floats
from coldpress.numerics.piece import piece
from coldpress.numerics.qparams import (
    calculate_global_scale,
    calculate_qparams,
    dynamic_qparams,
    in_weight_dtype,
)
from coldpress.numerics.quantize import dequantize, dequantized_rows, fake_quantize, fake_quantize_groups, quantize
from coldpress.numerics.rotation import (
    TRANSFORM_TYPES,
    Rotation,
    TransformType,
    cayley_step,
    orthogonalized,
    random_orthogonal,
    rotation_of,
)
from coldpress.numerics.search import search_qparams, search_range
from coldpress.numerics.straight_through import fake_quantize_straight_through, lsq_gradient_scale, scale_gradient
from coldpress.numerics.version import bit_sum, version

__all__ = [
    "TRANSFORM_TYPES",
    "Factor",
    "Rotation",
    "TransformType",
    "bit_sum",
    "calculate_global_scale",
    "calculate_qparams",
    "cayley_step",
    "check_codes",
    "check_finite",
    "check_input_qparams",
    "check_qparams",
    "decode_exponents",
    "dequantize",
    "dequantized_rows",
    "dynamic_qparams",
    "encode_exponents",
    "factorize",
    "fake_quantize",
    "fake_quantize_groups",
    "fake_quantize_straight_through",
    "folded_gram",
    "gram",
    "group",
    "hadamard_block_sizes",
    "hadamard_matrix",
    "hadamard_orders",
    "in_weight_dtype",
    "is_finite",
    "lsq_gradient_scale",
    "orthogonalized",
    "overwrite",
    "pack_floats",
    "pack_int32",
    "pack_rows_int32",
    "piece",
    "quantize",
    "random_orthogonal",
    "relative_error",
    "rotation_of",
    "scale_gradient",
    "scale_shape",
    "search_qparams",
    "search_range",
    "smallest",
    "smallest_in_groups",
    "unfolded",
    "ungrouped",
    "unpack_floats",
    "unpack_int32",
    "unpack_rows_int32",
    "version",
]
