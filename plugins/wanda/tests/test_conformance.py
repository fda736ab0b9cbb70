"""What `WandaModifier` promises."""

from coldpress.testing import conformance

test_unstructured = conformance("WandaModifier", settings={"sparsity": 0.5})

test_two_of_four = conformance("WandaModifier", settings={"mask_structure": "2:4"})
