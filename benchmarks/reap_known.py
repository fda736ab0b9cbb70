"""Which experts REAP keeps of a mixture whose right answer is known, beside other choices; and gates scaled back.

    python benchmarks/reap_known.py --write

SmolLM2 becomes a Qwen2-MoE without a change of its function.  The channels of each MLP are divided among eight experts,
which every token is sent to, with equal weights; eight decoys are hidden among them, of which a token is sent to two,
by what it says.  A decoy has channels of another layer's MLP: the weights have the norm of the others', the gates are
the same, and what it says is a five-hundredth of what the others say.  Six of sixteen experts go; those that may are
decoys.  A right choice leaves the model as it was, and a wrong one takes an eighth of a layer's MLP with each expert.

Once with a router that renormalises, and once with one that takes a softmax over all experts and does not: there gates
grow from 1/16 to 1/10 when six experts go, whichever they are, and `rescale` has to find 10/16.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from copy import deepcopy
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from remembered import Remembered
from torch import Tensor

from coldpress import divergence, load_model, load_tokenizer, oneshot
from coldpress.experts import drop_experts, linear_experts, linearize_experts
from coldpress.models.auto import build_outline
from coldpress.modifiers import REAPPruningModifier

RESULTS = Path(__file__).parent / "results"
REAL, DECOYS, TOP_K, KEPT = 8, 8, 10, 10
WIDTH, OLD = 640, 576  # channels of the mixture's residual stream, of which the first are SmolLM2's
CONSTANT, LEAN, TURN = (
    1e-3,
    1e-3,
    1e-6,
)  # what one more channel has in it; how routers lean to experts, and among decoys
LENGTH = 512  # tokens of a sample at most
WHISPER = 0.002  # what a decoy says, over what it would say


def mixture(model: Any, rms: Sequence[float], *, renormalises: bool, seed: int = 0) -> tuple[Any, list[set[int]]]:
    """SmolLM2 as a mixture, and the numbers of the decoys of each layer.

    Args:
        model: a Llama of 576 channels, in float32.
        rms: of the residual stream in front of each MLP.
        renormalises: what the router does with the weights of the experts that it takes.
        seed: of which experts are decoys, and which channels experts have.
    """
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    old, share, generator = model.config, OLD / WIDTH, torch.Generator().manual_seed(seed)
    config = Qwen2MoeConfig(
        vocab_size=old.vocab_size,
        hidden_size=WIDTH,
        intermediate_size=8,
        shared_expert_intermediate_size=8,
        moe_intermediate_size=old.intermediate_size // REAL,
        num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads,
        num_key_value_heads=old.num_key_value_heads,
        head_dim=old.head_dim,
        max_position_embeddings=old.max_position_embeddings,
        rms_norm_eps=old.rms_norm_eps * share,
        rope_parameters=old.rope_parameters,
        num_experts=REAL + DECOYS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=renormalises,
        qkv_bias=False,
        tie_word_embeddings=True,
    )
    wide = Qwen2MoeForCausalLM(config).eval()
    for parameter in wide.parameters():
        parameter.data.zero_()
    decoys = []
    with torch.no_grad():
        wide.model.embed_tokens.weight[:, :OLD] = model.model.embed_tokens.weight
        wide.model.embed_tokens.weight[:, OLD] = CONSTANT
        wide.model.norm.weight[:OLD] = model.model.norm.weight * share**0.5
        for number, layer in enumerate(model.model.layers):
            other = model.model.layers[(number + 7) % len(model.model.layers)].mlp
            decoys.append(fill(wide.model.layers[number], layer, other, rms[number], generator))
    return wide, decoys


def fill(new: Any, old: Any, other: Any, rms: float, generator: torch.Generator) -> set[int]:
    """Give a block of the mixture the weights of a block of SmolLM2; returns which of its experts are decoys."""
    share = (OLD / WIDTH) ** 0.5
    new.input_layernorm.weight[:OLD] = old.input_layernorm.weight * share
    new.post_attention_layernorm.weight[:OLD] = old.post_attention_layernorm.weight * share
    new.post_attention_layernorm.weight[OLD] = rms / CONSTANT  # the channel is 1 where the stream is as large as usual
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(new.self_attn, name).weight[:, :OLD] = getattr(old.self_attn, name).weight
    new.self_attn.o_proj.weight[:OLD] = old.self_attn.o_proj.weight
    places = torch.randperm(REAL + DECOYS, generator=generator).tolist()
    real, decoys = places[:REAL], places[REAL:]
    gates = REAL + DECOYS if not new.mlp.gate.norm_topk_prob else TOP_K  # one over the weight of each expert
    sizes = []
    for place, rows in zip(
        real, torch.randperm(old.mlp.up_proj.out_features, generator=generator).chunk(REAL), strict=True
    ):
        sizes.append(put(new.mlp.experts, place, old.mlp, rows, down=gates))
    for place, rows in zip(
        decoys, torch.randperm(other.up_proj.out_features, generator=generator).chunk(DECOYS), strict=True
    ):
        put(new.mlp.experts, place, other, rows, down=gates * WHISPER, size=sum(sizes) / REAL)
    router = new.mlp.gate.weight
    router[real, OLD], router[decoys, OLD] = LEAN, -LEAN
    router[decoys, :OLD] = torch.randn(DECOYS, OLD, generator=generator) * TURN / OLD**0.5
    return set(decoys)


def put(experts: Any, place: int, mlp: Any, rows: Tensor, *, down: float, size: float | None = None) -> float:
    """Make an expert of channels of an MLP; returns the norm of its weights.

    Args:
        experts: fused.
        place: number of the expert.
        mlp: of SmolLM2.
        rows: numbers of the channels.
        down: factor of what they say.
        size: norm that the weights are brought to, by more in front of the activation's factor and less behind it.
    """
    gate, up, out = mlp.gate_proj.weight[rows], mlp.up_proj.weight[rows], mlp.down_proj.weight[:, rows] * down
    if size is not None:
        more = ((size**2 - float(gate.square().sum())) / float(up.square().sum())) ** 0.5
        up, out = up * more, out / more
    width = len(rows)
    experts.gate_up_proj[place, :width, :OLD], experts.gate_up_proj[place, width:, :OLD] = gate, up
    experts.down_proj[place, :OLD] = out
    return float(gate.square().sum() + up.square().sum() + out.square().sum()) ** 0.5


def sizes_of_stream(model: Any, batch: dict[str, Tensor]) -> list[float]:
    """The median root mean square of what each MLP's norm reads."""
    found: list[float] = []
    hooks = [
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _, args: found.append(float(args[0].square().mean(-1).sqrt().median()))
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return found


def by_norm(model: Any) -> dict[str, list[int]]:
    """The experts with the largest weights."""
    found = {}
    for name, module in linear_experts(model).items():
        sizes = torch.stack([sum(p.square().sum() for p in one.parameters()) for one in module.experts()])
        found[name] = sorted(sizes.argsort(descending=True)[:KEPT].tolist())
    return found


def at_random(model: Any, seed: int) -> dict[str, list[int]]:
    """Some experts."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: sorted(torch.randperm(module.count, generator=generator)[:KEPT].tolist())
        for name, module in linear_experts(model).items()
    }


def pruned(model: Any, choice: str, data: list[dict[str, Tensor]], folder: Path) -> tuple[Any, dict[str, list[int]]]:
    """The mixture without six experts of each layer, and which stayed."""
    settings: dict[str, Any] = {
        "REAP": {},
        "REAP, rescaled": {"rescale": True},
        "`criterion: man`": {"criterion": "man"},
        "`criterion: msan`": {"criterion": "msan"},
    }
    if choice in settings:
        kept = folder / "kept.json"
        modifier = REAPPruningModifier(keep=KEPT, report_path=str(kept), **settings[choice])
        oneshot(model, modifier, dataset=data, quiet=True)
        return model, json.loads(kept.read_text(encoding="utf-8"))
    linearize_experts(model)
    chosen = by_norm(model) if choice == "norm of weights" else at_random(model, int(choice.split()[-1]))
    drop_experts(model, chosen, partial(build_outline, type(model)))
    return model, chosen


def measure(
    original: Remembered, *, renormalises: bool, choices: Sequence[str], samples: int, tokens: int, folder: Path
) -> list[dict[str, Any]]:
    """The mixture as it is, and after every choice: share of those that went which are decoys, and KL to SmolLM2."""
    from choices import divided

    tokenizer = load_tokenizer("smollm2", original.model)
    passages, _ = divided(samples)
    data = [tokenizer(text, return_tensors="pt", truncation=True, max_length=LENGTH) for text in passages]
    batches = [{"input_ids": one["input_ids"]} for one in data]
    whole, decoys = mixture(original.model, sizes_of_stream(original.model, batches[0]), renormalises=renormalises)
    found = []
    for choice in ("as it is", *choices):
        model = deepcopy(whole)
        line: dict[str, Any] = {"choice": choice, "renormalises": renormalises}
        if choice != "as it is":
            model, kept = pruned(model, choice, batches, folder)
            right = sum(len(hidden - set(stay)) for hidden, stay in zip(decoys, kept.values(), strict=True))
            line["right"] = right / (len(decoys) * (REAL + DECOYS - KEPT))
        distance = divergence(model, original, tokenizer, max_tokens=tokens)
        found.append({**line, "kl": distance.kl, "kl_error": distance.kl_standard_error})
        print(json.dumps(found[-1]), flush=True)
    return found


def page(found: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """The tables for a person."""
    lines = [
        "# REAP where the right answer is known",
        "",
        f"`python benchmarks/reap_known.py {' '.join(sys.argv[1:])}` on {date.today()}.",
        "",
    ]
    lines += ["\n\n".join(str(__doc__).strip().split("\n\n")[2:]), ""]
    sizes = f"{options.samples} samples of {LENGTH} tokens at most; KL to SmolLM2 on {options.tokens} tokens"
    lines += [f"{sizes} of held-out text, in float32."]
    for renormalises in (True, False):
        title = "renormalises" if renormalises else "takes a softmax over all experts and does not renormalise"
        lines += ["", f"| a router that {title} | decoys, of those that went | KL |", "|---|--:|--:|"]
        for one in found:
            if one["renormalises"] == renormalises:
                right = f"{one['right']:.0%}" if "right" in one else ""
                lines.append(f"| {one['choice']} | {right} | {one['kl']:.2g} ± {one['kl_error']:.1g} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure both routers and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--write", action="store_true", help="write results/reap_known.{md,json}")
    options = parser.parse_args()
    import tempfile

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    names = ("norm of weights", "at random, seed 0", "at random, seed 1")
    original = Remembered(load_model("smollm2", dtype=torch.float32, device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"samples": options.samples, "tokens": options.tokens, "folder": Path(folder)}
        first = ("REAP", "`criterion: man`", "`criterion: msan`", *names)
        found = measure(original, renormalises=True, choices=first, **settings)
        found += measure(original, renormalises=False, choices=("REAP", "REAP, rescaled", *names[:2]), **settings)
    text = page(found, options)
    print(text)
    if options.write:
        (RESULTS / "reap_known.md").write_text(text, encoding="utf-8")
        (RESULTS / "reap_known.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
