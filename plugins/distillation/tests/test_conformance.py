"""What `OutputDistillationModifier` promises."""

from coldpress.testing import conformance

test_logits = conformance("OutputDistillationModifier", settings={"temperature": 2.0, "top_k": 16})

test_hidden_states = conformance(
    "OutputDistillationModifier", settings={"targets": ["LlamaDecoderLayer"], "comparison": "square_head"}
)
