"""What modifiers of one family share: quantizers, smoothers, pruners, the KV cache."""
