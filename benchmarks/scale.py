"""What large models need on 1, 8 and 64 cards, counted by `coldpress.plan` from shapes and the rates of a profile.

    python benchmarks/scale.py --write

Each model is a folder of safetensors files whose headers are whole and whose data are a hole in the file, so that
nothing is downloaded or stored.  It is planned with two blocks and with three; a block more costs the difference.
GPTQ W4A16, 512 samples of 2048 tokens, from a folder to a folder.  The rates of `profiles/h100.json` are those of a
card's sheet, less what is never reached, and gloo as measured on a CPU; with them a block of 8B takes 1.9 s with 128
samples, where one H100 took 1.2 s in memory and 2.4 s streamed (`results/gpu.md`).
"""

import argparse
import json
import tempfile
from datetime import date
from math import prod
from pathlib import Path

import torch
import transformers

import coldpress

HERE = Path(__file__).parent
RECIPE = "GPTQModifier: {scheme: W4A16, ignore: [lm_head, 're:.*gate$']}"
SAMPLES, TOKENS = 512, 2048
RANKS = (1, 8, 64)


def llama(hidden, inner, heads, keys):
    def config(blocks):
        return transformers.LlamaConfig(
            vocab_size=128256, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=blocks,
            num_attention_heads=heads, num_key_value_heads=keys, head_dim=128, max_position_embeddings=8192,
        )  # fmt: skip

    return transformers.LlamaForCausalLM, config


def mixture(hidden, inner, experts, heads, keys):
    def config(blocks):
        return transformers.Qwen3MoeConfig(
            vocab_size=151936, hidden_size=hidden, intermediate_size=inner, moe_intermediate_size=inner,
            num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=keys, head_dim=128,
            num_experts=experts, num_experts_per_tok=8, max_position_embeddings=8192,
        )  # fmt: skip

    return transformers.Qwen3MoeForCausalLM, config


MODELS = {
    "8B": (*llama(4096, 14336, 32, 8), 32),
    "70B": (*llama(8192, 28672, 64, 8), 80),
    "405B": (*llama(16384, 53248, 128, 8), 126),
    "1T, 384 experts": (*mixture(7168, 2048, 384, 64, 8), 61),
}


def write_hollow(kind, config, folder: Path) -> None:
    """A checkpoint with headers and no data."""
    folder.mkdir(parents=True)
    config.architectures, config.dtype = [kind.__name__], torch.bfloat16
    with torch.device("meta"):
        model = kind(config).to(torch.bfloat16)
    config.save_pretrained(folder)
    header, start = {}, 0
    for name, tensor in model.state_dict().items():
        size = 2 * prod(tensor.shape)
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)


def planned(folder: Path, ranks: int) -> dict[str, float]:
    rows = [[1 + (i * 7 + j) % 1000 for j in range(TOKENS)] for i in range(SAMPLES)]
    found = coldpress.plan(
        str(folder), RECIPE, dataset=rows, num_calibration_samples=SAMPLES, max_seq_length=TOKENS, batch_size=1,
        ranks=ranks, device_profile=HERE / "profiles" / "h100.json", quiet=True,
    )  # fmt: skip
    low, high = found.seconds()
    exchanged = found.to_dict()["ranks"]["exchanged_bytes"]
    return {
        "before": found.before, "after": found.after, "disk": found.disk, "low": low, "high": high,
        "exchanged": exchanged, "device": found.device_nbytes(),
        "host": max(stage.host for stage in found.stages),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", choices=list(MODELS), nargs="+")
    arguments = parser.parse_args()
    found, rows = {}, []
    for name, (kind, config, blocks) in MODELS.items():
        if arguments.only and name not in arguments.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for count in (2, 3):
                write_hollow(kind, config(count), Path(folder) / str(count))
            for ranks in RANKS:
                two, three = (planned(Path(folder) / str(count), ranks) for count in (2, 3))
                held = ("device", "host")  # a maximum over stages
                whole = {
                    key: three[key] if key in held else two[key] + (three[key] - two[key]) * (blocks - 2) for key in two
                }
                found[f"{name}, {ranks}"] = whole
                rows.append(
                    f"| {name} | {ranks} | {whole['low'] / 60:.0f} to {whole['high'] / 60:.0f} min | "
                    f"{whole['device'] / 1e9:.0f} GB | {whole['host'] / 1e9:.0f} GB | {whole['disk'] / 1e9:.0f} GB | "
                    f"{whole['exchanged'] / 1e9:.0f} GB |"
                )
                print(rows[-1], flush=True)
    table = "| model | cards | time | of a card | of its host | disk | received |\n|---|--:|--:|--:|--:|--:|--:|\n"
    text = (
        f"# Scale\n\n`python benchmarks/scale.py` on {date.today()}, coldpress.plan.\n\n{table}"
        + "\n".join(rows)
        + "\n"
    )
    if arguments.write:
        (HERE / "results" / "scale.md").write_text(text)
        (HERE / "results" / "scale.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
