"""Compressing a checkpoint shard by shard, without the model: names and shapes of tensors stand in for it."""
