"""What `MagnitudePruningModifier` and `ConstantPruningModifier` promise."""

from coldpress.testing import conformance

test_unstructured = conformance("MagnitudePruningModifier", settings={"sparsity": 0.5})

test_two_of_four = conformance("MagnitudePruningModifier", settings={"mask_structure": "2:4"})

test_columns = conformance("MagnitudePruningModifier", settings={"sparsity": 0.25, "mask_structure": "channel"})

test_constant = conformance("ConstantPruningModifier")

test_gradual = conformance("MagnitudePruningModifier", settings={"final_sparsity": 0.75, "update": 0.3})
