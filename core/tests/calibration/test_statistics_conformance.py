"""What our statistics promise."""

from coldpress.testing import conformance

test_absmax = conformance("absmax")
test_gram = conformance("gram")
test_histogram = conformance("histogram")
test_mean = conformance("mean")
test_mean_abs = conformance("mean_abs")
test_minmax = conformance("minmax", kind="statistics")
test_second_moment = conformance("second_moment")
test_gamma = conformance("gamma")
