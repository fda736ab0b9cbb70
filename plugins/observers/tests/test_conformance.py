"""What the observers promise."""

from coldpress.testing import conformance

test_memoryless_minmax = conformance("memoryless_minmax")
test_static_minmax = conformance("static_minmax")
test_minmax = conformance("minmax", kind="observers")
test_mse = conformance("mse")
test_memoryless_mse = conformance("memoryless_mse")
test_moving_average = conformance("moving_average")
test_imatrix_mse = conformance("imatrix_mse")
test_percentile = conformance("percentile")
test_kl = conformance("kl")

BEYOND = {"stays_within": "the range is widened on purpose"}
test_nvfp4_expanded_mse = conformance("nvfp4_expanded_mse", expected_failures=BEYOND)
test_nvfp4_expanded_imatrix = conformance("nvfp4_expanded_imatrix", expected_failures=BEYOND)
test_fouroversix = conformance("fouroversix", expected_failures=BEYOND)
test_four_over_six = conformance("four_over_six", expected_failures=BEYOND)
test_rceil = conformance(
    "rceil", expected_failures=BEYOND | {"constants": "it is for scales that are powers of two, and widens up to twice"}
)
