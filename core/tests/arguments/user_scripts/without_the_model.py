"""Shard by shard, and from one format to another."""

from coldpress import convert, model_free_ptq

report = model_free_ptq("deepseek-ai/DeepSeek-V3", "out", scheme="FP8_BLOCK", ignore=["re:.*gate$"], max_workers=4)
print(report.seconds, len(report.layers))
convert("openai/gpt-oss-20b", "gpt-oss-ct", to="compressed-tensors")
model_free_ptq("m", "out", schema="FP8_BLOCK")  # wrong
convert("m", "out", to=3)  # wrong
print(report.second)  # wrong
