"""What `QuIPModifier` promises."""

from coldpress.testing import conformance

test_quip = conformance("QuIPModifier", settings={"rotations": ["v", "u"]})
