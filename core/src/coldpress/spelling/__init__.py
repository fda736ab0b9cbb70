"""What a name that is not there may have meant: one that looks like it, or what other tools call by it."""

from collections.abc import Iterable
from difflib import get_close_matches

_ELSEWHERE = {  # what GPTQModel, AutoAWQ, AutoRound and papers' scripts call our settings and arguments
    **dict.fromkeys(("percdamp", "damp_percent", "damp"), "dampening_frac"),
    **dict.fromkeys(("desc_act", "act_order", "act_group_aware"), "actorder"),
    **dict.fromkeys(("w_bit", "wbits", "w_bits", "nbits", "bits"), "num_bits"),
    **dict.fromkeys(("q_group_size", "groupsize"), "group_size"),
    **dict.fromkeys(("nsamples", "n_samples", "max_calib_samples"), "num_calibration_samples"),
    **dict.fromkeys(("seqlen", "seq_len", "max_calib_seq_len"), "max_seq_length"),
    **dict.fromkeys(("calib_data", "calib_dataset", "calibration_dataset"), "dataset"),
    **dict.fromkeys(("modules_to_not_convert", "skip_modules", "exclude"), "ignore"),
    **dict.fromkeys(("save_dir", "save_path", "quant_path", "outfile"), "output_dir"),
    **dict.fromkeys(("model_path", "model_id", "model_name_or_path"), "model"),
    **{"fp16": "float16", "f16": "float16", "bf16": "bfloat16", "fp32": "float32", "f32": "float32"},
    **{"sym": "symmetric", "zero_point": "symmetric", "alpha": "smoothing_strength", "sparsity_ratio": "sparsity"},
}

_VALUES = {  # what other tools call our formats, schemes, data sets and devices
    **dict.fromkeys(("hf", "ct", "safetensors", "vllm", "compressed_tensors"), "compressed-tensors"),
    **{"autogptq": "gptq", "gptqmodel": "gptq", "autoawq": "awq", "llama.cpp": "gguf", "llamacpp": "gguf"},
    **dict.fromkeys(("int4", "4bit", "4-bit", "w4", "uint4", "nf4", "bnb"), "W4A16"),
    **dict.fromkeys(("8bit", "8-bit", "w8"), "W8A16"),
    **dict.fromkeys(("float8", "fp8_e4m3", "e4m3"), "FP8"),
    **dict.fromkeys(("wikitext2", "wikitext-2", "wiki"), "wikitext"),
    **dict.fromkeys(("c4-new", "c4_new", "c4-train"), "c4"),
    **dict.fromkeys(("gpu", "nvidia", "rocm", "hip"), "cuda"),
}


def elsewhere(name: str) -> str:
    """The setting or argument that other tools call so; nothing where none is known."""
    return _ELSEWHERE.get(name.lower(), "")


def near(name: str, known: Iterable[str], *, count: int = 1) -> list[str]:
    """The `count` names of `known` that look most like `name`, best first, or mean what it means in other tools."""
    spelling = {k.lower(): k for k in known}
    names = (elsewhere(name), _VALUES.get(name.lower(), "").lower())
    meant = [spelling[k] for k in names if k and k in spelling]
    alike = [spelling[k] for k in get_close_matches(name.lower(), spelling, n=count, cutoff=0.55)]
    return list(dict.fromkeys(meant + alike))[:count]


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'x'?`, or nothing when no name is near."""
    found = near(name, known)
    return f"; did you mean {found[0]!r}?" if found else ""
