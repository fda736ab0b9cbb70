"""The cases of golden.py: which model, which recipe, which arguments of `oneshot`."""

from pathlib import Path
from typing import Any, NamedTuple

RECIPES = Path(__file__).parents[1] / "recipes"
EMBEDDED = "smollm2"


class Case(NamedTuple):
    """One call of `oneshot`.

    Attributes:
        model: a name of `golden.MODELS`, or the embedded model's.
        recipe: YAML text, or the path of a file.
        arguments: of `oneshot`, beside those that all cases have.
        streamed: the model is read from a folder, stage by stage; otherwise it is in memory.
        stages: finished stages after which the run is interrupted and then resumed by the same call; 0 for never.
        rows: of calibration data; `even` ones have one length, `ragged` ones many.
    """

    model: str
    recipe: str
    arguments: dict[str, Any] = {}  # noqa: RUF012 - never written to
    streamed: bool = False
    stages: int = 0
    rows: str = "even"


def modifiers(*steps: str) -> str:
    """A recipe of modifiers, each `Name: {settings}` or `Name: settings without braces`."""
    return "modifiers:\n" + "".join(f"  - {step}\n" for step in steps)


def one(name: str, settings: str = "") -> str:
    """A modifier with settings in YAML; the head is left alone."""
    return f"{name}: {{{settings}{', ' if settings else ''}ignore: [lm_head]}}"


def quantize(settings: str) -> str:
    """Rounding to nearest."""
    return one("QuantizationModifier", settings)


def groups(weights: str, inputs: str = "null", more: str = "") -> str:
    """A scheme in full, for every linear layer but the head."""
    scheme = f"config_groups: {{all: {{targets: [Linear], weights: {weights}, input_activations: {inputs}}}}}"
    return quantize(f"{scheme}{', ' if more else ''}{more}")


INT4 = "scheme: W4A16, group_size: 32"
INT8_CHANNEL = "{num_bits: 8, type: int, symmetric: true, strategy: channel}"
INT8_STATIC = "{num_bits: 8, type: int, symmetric: true, strategy: tensor, dynamic: false}"
INT8_STATIC_ASYM = "{num_bits: 8, type: int, symmetric: false, strategy: tensor, dynamic: false}"
KEYS = "kv_cache_scheme: {num_bits: 8, type: float, strategy: tensor}"
HEADS = "kv_cache_scheme: {num_bits: 8, type: int, strategy: attn_head, observer: static_minmax}"

GPTQ = one("GPTQModifier", INT4)
STATIC = groups(INT8_CHANNEL, INT8_STATIC)
SMOOTH = one("SmoothQuantModifier", "smoothing_strength: 0.8")
SPARSE = one("SparseGPTModifier", "sparsity: 0.5")
CACHE = quantize(f"scheme: W8A8, {KEYS}")
OWL = "sparsity: 0.6, sparsity_profile: owl, owl_m: 5.0, owl_lmbda: 0.08"
TWO = (
    "QuantizationModifier: {scheme: W8A8, ignore: [lm_head, 're:.*mlp.*']}",
    "GPTQModifier: {targets: ['re:.*mlp.*_proj'], scheme: W4A16_ASYM, group_size: 64}",
)


def every_case() -> dict[str, Case]:
    """All cases by name, `model/what`."""
    return {**_files(), **_pipelines(), **_schemes(), **_algorithms(), **_models(), **_resumed()}


def _files() -> dict[str, Case]:
    """Every recipe of the folder, on a tiny Llama and, with groups of 64, on SmolLM2, whose width is 576."""
    found = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        sized = {"recipe_args": {"group_size": 64}} if "${group_size}" in text else {}
        found[f"llama/{path.stem}"] = Case("llama", str(path))
        if "W4A16:" not in text:  # awq_fp8: a preset with targets keeps its groups of 128
            found[f"{EMBEDDED}/{path.stem}"] = Case(EMBEDDED, str(path), sized)
    return found


def _pipelines() -> dict[str, Case]:
    """Every pipeline with its settings, in memory and streamed."""
    recipe, smooth = modifiers(GPTQ), modifiers(SMOOTH, GPTQ)
    settings: dict[str, dict[str, Any]] = {
        "sequential": {"pipeline": "sequential"},
        "sequential-true": {"pipeline": "sequential", "true_sequential": True},
        "sequential-parallel": {"pipeline": "sequential", "true_sequential": False},
        "sequential-original": {"pipeline": "sequential", "propagate_error": False},
        "sequential-offloaded": {"pipeline": "sequential", "offload_activations": "disk", "offload_limit": 0},
        "layer_sequential": {"pipeline": "layer_sequential"},
        "layer_sequential-original": {"pipeline": "layer_sequential", "propagate_error": False},
        "basic": {"pipeline": "basic"},
        "independent": {"pipeline": "independent"},
    }
    found = {}
    for name, arguments in settings.items():
        found[f"llama/{name}"] = Case("llama", recipe, arguments)
    for name in ("sequential", "layer_sequential", "basic", "independent"):
        found[f"llama/{name}-smoothquant"] = Case("llama", smooth, settings[name])
        found[f"llama/{name}-smoothquant-streamed"] = Case("llama", smooth, settings[name], streamed=True)
    within = "pipeline: {independent: {pipeline: layer_sequential}}\n"
    asymmetric = modifiers(quantize("scheme: W4A16_ASYM, group_size: 64"))
    return found | {
        "llama/independent-layer_sequential": Case("llama", within + smooth),
        "llama/data_free": Case("llama", asymmetric, {"pipeline": "data_free"}),
        "llama/data_free-streamed": Case("llama", asymmetric, {"pipeline": "data_free"}, streamed=True),
        "llama/ragged": Case("llama", smooth, {"batch_size": 3, "data_collator": "padding"}, rows="ragged"),
        "llama/ragged-static": Case("llama", modifiers(STATIC), {"data_collator": "padding"}, rows="ragged"),
        "llama/batches-of-four": Case("llama", modifiers(STATIC), {"batch_size": 4}),
    }


def _schemes() -> dict[str, Case]:
    """Number formats, inputs, keys and values, observers."""
    low = "{num_bits: 4, group_size: 32, observer: %s}"
    recipes = {
        "fp8-static": quantize("scheme: FP8"),
        "fp8-block": quantize("scheme: FP8_BLOCK"),
        "mxfp4": quantize("scheme: MXFP4"),
        "nvfp4": quantize("scheme: NVFP4"),
        "nvfp4-four_over_six": quantize("scheme: NVFP4A16, weight_observer: four_over_six"),
        "static-asymmetric": groups(INT8_CHANNEL, INT8_STATIC_ASYM),
        "static-mse": groups(INT8_CHANNEL, INT8_STATIC, "observer: {weights: mse, input: mse}"),
        "static-kl": groups(INT8_CHANNEL, INT8_STATIC, "input_observer: kl"),
        "imatrix_mse": groups(low % "imatrix_mse"),
        "weights-mse": groups(low % "mse"),
        "kv-cache": quantize(KEYS),
        "kv-cache-heads": quantize(f"scheme: W8A8, {HEADS}"),
    }
    found = {f"llama/{name}": Case("llama", modifiers(step)) for name, step in recipes.items()}
    caches = {name: Case("llama", modifiers(CACHE), {"pipeline": name}) for name in ("basic", "layer_sequential")}
    caches["gptq"] = Case("llama", modifiers(quantize(KEYS), GPTQ), {"pipeline": "sequential", "true_sequential": True})
    return found | {f"llama/kv-cache-{name}": case for name, case in caches.items()}


def _algorithms() -> dict[str, Case]:
    """Settings of the algorithms, and several in one recipe."""
    rounded = quantize(INT4)
    nvfp4, nvfp4_gptq = quantize("scheme: NVFP4A16"), one("GPTQModifier", "scheme: NVFP4A16")
    recipes = {
        "gptq-asymmetric": [one("GPTQModifier", "scheme: W4A16_ASYM, group_size: 32, actorder: null")],
        "gptq-static": [one("GPTQModifier", "scheme: FP8")],
        "gptq-gptaq": [one("GPTQModifier", f"{INT4}, correction: gptaq")],
        "gptq-qronos": [one("GPTQModifier", f"{INT4}, correction: qronos")],
        "gptq-magr-refit": [one("GPTQModifier", f"{INT4}, magr_alpha: 0.001, refit_scales: true")],
        "gptq-imatrix_mse": [one("GPTQModifier", f"{INT4}, weight_observer: imatrix_mse")],
        "gptq-nvfp4": [nvfp4_gptq],
        "awq-gram": [one("AWQModifier", "objective: gram"), rounded],
        "awq-block": [one("AWQModifier", "objective: block"), rounded],
        "awq-both-unclipped": [one("AWQModifier", "duo_scaling: both, clip: false"), rounded],
        "awq-own-scheme": [one("AWQModifier", "scheme: W4A16_ASYM, group_size: 32")],
        "awq-nvfp4": [one("AWQModifier"), nvfp4],
        "awq-nvfp4-gptq": [one("AWQModifier"), nvfp4_gptq],
        "awq-sparsegpt-nvfp4": [one("AWQModifier"), SPARSE, nvfp4],
        "smoothquant-gptq": [SMOOTH, one("GPTQModifier", "scheme: W8A8")],
        "smoothquant-static": [SMOOTH, STATIC],
        "log-equalization": [one("LogarithmicEqualizationModifier"), quantize("scheme: W8A8")],
        "smoothquant-awq": [SMOOTH, one("AWQModifier"), rounded],
        "sparsegpt-gptq": [SPARSE, GPTQ],
        "sparsegpt-by-block": [one("SparseGPTModifier", "sparsity: [0.3, 0.5, 0.7]")],
        "wanda-2of4-static": [one("WandaModifier", "mask_structure: '2:4'"), STATIC],
        "two-quantizers": [*TWO],
    }
    found = {f"llama/{name}": Case("llama", modifiers(*steps)) for name, steps in recipes.items()}
    for name in ("SparseGPTModifier", "WandaModifier"):
        owl = Case("llama", modifiers(one(name, OWL)), {"pipeline": "basic"})
        found[f"llama/owl-basic-{name.removesuffix('Modifier').lower()}"] = owl
    found["llama/two-quantizers-independent"] = Case("llama", modifiers(*TWO), {"pipeline": "independent"})
    found["llama/dense"] = Case("llama", modifiers(STATIC), {"save_compressed": False})
    return found


def _models() -> dict[str, Case]:
    """Other architectures: mixtures of experts, Conv1D, biases, tied and untied heads."""
    routed = {"moe_calibrate_all_experts": False}
    awq, smooth = modifiers(one("AWQModifier"), quantize(INT4)), modifiers(SMOOTH, one("GPTQModifier", "scheme: W8A8"))
    head = modifiers("QuantizationModifier: {scheme: W8A8}")
    cases = {
        "qwen3_moe/gptq": Case("qwen3_moe", modifiers(GPTQ)),
        "qwen3_moe/gptq-routed": Case("qwen3_moe", modifiers(GPTQ), routed),
        "qwen3_moe/gptq-routed-streamed": Case("qwen3_moe", modifiers(GPTQ), routed, streamed=True),
        "qwen3_moe/awq": Case("qwen3_moe", awq),
        "qwen3_moe/data_free": Case("qwen3_moe", modifiers(quantize(INT4))),
        "qwen3_moe/static-routed": Case("qwen3_moe", modifiers(STATIC), routed),
        "mixtral/awq-routed": Case("mixtral", awq, routed),
        "mixtral/static": Case("mixtral", modifiers(STATIC)),
        "mixtral/nvfp4-layer_sequential": Case(
            "mixtral", modifiers(quantize("scheme: NVFP4")), {"pipeline": "layer_sequential"}
        ),
        "mixtral/sparsegpt-gptq-basic": Case("mixtral", modifiers(SPARSE, GPTQ), {"pipeline": "basic"}),
        "opt/smoothquant-gptq": Case("opt", smooth),
        "opt/awq": Case("opt", awq),
        "opt/static-streamed": Case("opt", modifiers(STATIC), streamed=True),
        "gpt2/gptq": Case("gpt2", modifiers(GPTQ)),
        "gpt2/smoothquant-gptq": Case("gpt2", smooth),
        "gpt2/sparsegpt-streamed": Case("gpt2", modifiers(SPARSE), streamed=True),
        "llama-tied/gptq": Case("llama-tied", modifiers(GPTQ)),
        "llama-tied/untied-head": Case("llama-tied", head, {"tie_word_embeddings": False}),
        "llama/head": Case("llama", head),
        "llama-pruned/gptq": Case("llama-pruned", modifiers(GPTQ)),
        "llama-pruned/w4a16_keep_zeros": Case("llama-pruned", str(RECIPES / "w4a16_keep_zeros.yaml")),
        "llama-pruned/magr-keep-zeros": Case(
            "llama-pruned", modifiers(one("GPTQModifier", f"{INT4}, magr_alpha: 0.001"), one("ConstantPruningModifier"))
        ),
    }
    return cases


def _resumed() -> dict[str, Case]:
    """Runs that are interrupted after two stages and resumed."""
    corrected = modifiers(SMOOTH, one("GPTQModifier", f"{INT4}, correction: gptaq"))
    recipes = {
        "sequential": (modifiers(SMOOTH, GPTQ), {"pipeline": "sequential"}),
        "layer_sequential": (modifiers(SMOOTH, GPTQ), {"pipeline": "layer_sequential"}),
        "independent": (modifiers(*TWO), {"pipeline": "independent"}),
        "static": (modifiers(STATIC), {"pipeline": "sequential"}),
        "kv-cache": (modifiers(CACHE), {"pipeline": "sequential"}),
        "gptaq": (corrected, {"pipeline": "sequential"}),
    }
    found = {}
    for name, (recipe, arguments) in recipes.items():
        for streamed in (False, True):
            where = "streamed" if streamed else "memory"
            found[f"llama/resumed-{name}-{where}"] = Case("llama", recipe, arguments, streamed=streamed, stages=2)
    return found
