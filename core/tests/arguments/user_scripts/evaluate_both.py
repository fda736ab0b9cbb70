"""Perplexity and KL divergence of a compressed model."""

from coldpress import divergence, load_model, load_tokenizer, perplexity

original, compressed = load_model("smollm2", dtype="bfloat16"), load_model("out", device="cpu")
tokenizer = load_tokenizer("smollm2", original)
measured = perplexity(compressed, tokenizer, "some text", window=256)
apart = divergence(compressed, original, tokenizer, max_tokens=4096)
print(f"{measured.value:.2f} +- {measured.standard_error:.2f}, {apart.kl:.4f} nats")
perplexity(compressed, tokenizer, windows=256)  # wrong
print(apart.kl_divergence)  # wrong
load_model("smollm2", torch_dtype="bfloat16")  # wrong
