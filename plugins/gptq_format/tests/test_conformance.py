"""The promises of a format."""

from coldpress.testing import conformance

test_conformance = conformance("gptq", kind="formats")
