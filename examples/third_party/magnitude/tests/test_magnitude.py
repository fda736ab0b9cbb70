from coldpress.testing import conformance

test_conformance = conformance("MagnitudeExampleModifier")
