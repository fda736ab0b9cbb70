"""The kit's promises, for every observer."""

from coldpress.testing import conformance

test_memoryless_minmax = conformance("memoryless_minmax", kind="observers")
test_memoryless_mse = conformance("memoryless_mse", kind="observers")
test_minmax = conformance("minmax", kind="observers")
test_mse = conformance("mse", kind="observers")
test_static_minmax = conformance("static_minmax", kind="observers")
