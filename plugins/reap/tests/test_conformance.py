"""What `REAPPruningModifier` promises, of a mixture whose router renormalises."""

from coldpress.testing import conformance

test_half = conformance("REAPPruningModifier", settings={"sparsity": 0.5}, mixture="mixtral")
