"""What the formats promise."""

from coldpress.testing import conformance

test_compressed_tensors = conformance("compressed-tensors")
test_dense = conformance("dense")
