"""What `SpinQuantModifier` promises."""

from coldpress.testing import conformance

test_spinquant = conformance("SpinQuantModifier")
