"""What the pipelines promise."""

from coldpress.testing import conformance

test_basic = conformance("basic")
test_data_free = conformance("data_free")
test_sequential = conformance("sequential")
test_independent = conformance("independent")
test_layer_sequential = conformance("layer_sequential")
