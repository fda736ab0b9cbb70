"""What the observers promise."""

from coldpress.testing import conformance

test_memoryless_minmax = conformance("memoryless_minmax")
test_static_minmax = conformance("static_minmax")
test_minmax = conformance("minmax", kind="observers")
test_mse = conformance("mse")
test_memoryless_mse = conformance("memoryless_mse")
