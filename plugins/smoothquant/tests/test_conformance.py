"""What `SmoothQuantModifier` promises."""

from coldpress.testing import conformance

test_smoothquant = conformance("SmoothQuantModifier")

test_log_equalization = conformance("LogarithmicEqualizationModifier")
