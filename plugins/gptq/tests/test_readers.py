"""Which layers are rounded in one go."""

import pytest
from torch import nn

from coldpress import QuantizationArgs
from coldpress.stage import find_layers
from coldpress_gptq.readers import Readers, batches_of, divided

INT4, INT8 = (QuantizationArgs(num_bits=bits, strategy="channel") for bits in (4, 8))


def layers_of(*shapes):
    """Linear layers of so many rows and columns."""
    model = nn.ModuleDict({f"layer{i}": nn.Linear(columns, rows) for i, (rows, columns) in enumerate(shapes)})
    return list(find_layers(model.named_modules()))


def readers_of(*shapes, args=INT4, keep_zeros=False):
    return [Readers([layer], args, keep_zeros) for layer in layers_of(*shapes)]


def test_layers_are_divided_at_whole_layers():
    sizes = [4, 6, 2, 20, 1]

    parts = divided(layers_of(*((rows, 8) for rows in sizes)), most=10)

    assert [[layer.weight.shape[0] for layer in part] for part in parts] == [[4, 6], [2], [20], [1]]


@pytest.mark.parametrize(("size", "found"), [(None, [1] * 5), (2, [2, 2, 1]), (100, [5]), ("auto", [2, 2, 1])])
def test_a_batch_has_as_many_inputs_as_asked_for_or_as_rows_allow(size, found):
    inputs = readers_of(*[(8192, 2)] * 5)

    batches = batches_of(inputs, size)

    assert [len(batch) for batch in batches] == found
    assert [readers for batch in batches for readers in batch] == inputs


def test_a_layer_of_more_rows_than_that_is_a_batch():
    assert [len(batch) for batch in batches_of(readers_of((20000, 2), (20000, 2)), "auto")] == [1, 1]


def test_only_inputs_of_one_kind_share_a_batch():
    plain, wider, longer = readers_of((4, 8), (4, 16), (6, 8))
    eight, pruned = *readers_of((4, 8), args=INT8), *readers_of((4, 8), keep_zeros=True)
    half = Readers([*layers_of((4, 8))], INT4, keep_zeros=False)
    half.layers[0].module.half()
    (twin,) = readers_of((4, 8))

    batches = batches_of([plain, wider, longer, eight, pruned, half, twin], "auto")

    assert batches == [[plain, twin], [wider], [longer], [eight], [pruned], [half]]
