"""What `SparseGPTModifier` promises."""

from coldpress.testing import conformance

test_two_of_four = conformance("SparseGPTModifier", settings={"mask_structure": "2:4"})

test_unstructured = conformance("SparseGPTModifier", settings={"sparsity": 0.5})

test_zeros_are_kept = conformance(
    "SparseGPTModifier", settings={"sparsity": 0.75, "block_size": 48, "preserve_sparsity_mask": True}
)
