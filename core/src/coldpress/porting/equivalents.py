"""What a name of llm-compressor, or of compressed-tensors, is here: the only table of `coldpress port`.

from llmcompressor.modifiers.quantization import GPTQModifier      moved to coldpress.modifiers
from compressed_tensors.offload import dispatch_model              dropped: a call of it is its argument
from llmcompressor.datasets.utils import get_rank_partition        an expression stands for it
from compressed_tensors.entrypoints.convert import FP8BlockDequantizer  reader: the argument converter= goes
from llmcompressor.modeling.patch.x import fast_pos_embed_interpolate   patch: the statement that assigns it goes
from compressed_tensors.quantization import QuantizationStrategy   kept: it works as it is
from llmcompressor.observers import Observer                       missing
"""

import re
from contextlib import suppress
from importlib import import_module
from typing import Literal

import transformers
from attrs import frozen

import coldpress
from coldpress import registry
from coldpress.errors import BrokenPluginError

Kind = Literal["moved", "dropped", "expression", "reader", "patch", "kept", "missing"]

PACKAGES = ("llmcompressor", "compressed_tensors")

_PRESET = re.compile(r"(W\d+A\d+|MXFP\d|NVFP\d|FP8|INT8|UNQUANTIZED)\w*")

# Names of the package llmcompressor, wherever in it they are, that mean the same in coldpress.
_SAME = (
    "Oneshot",
    "active_session",
    "create_session",
    "load_context",
    "model_free_ptq",
    "oneshot",
    "reset_session",
    "train",
    "__version__",
)

_MODEL_CLASSES = ("ForCausalLM", "ForConditionalGeneration")

_STAYS = "the model stays where it is; model.to(device) moves it"
_EXPERTS = "experts are made linear layers by the run itself"

# Functions whose result is their first argument, as far as a script is concerned -> why nothing is lost.
_DROPPED = {
    "dispatch_for_generation": _STAYS,
    "dispatch_model": _STAYS,
    "modify_save_pretrained": "save_pretrained writes the compressed model after oneshot as it is",
    "prepare_cohere2_moe_for_spinquant": "what reads and writes the residual stream is found by probing",
    "prepare_for_calibration": _EXPERTS,
    "replace_modules_for_calibration": _EXPERTS,
    "wrap_hf_model_class": "classes of transformers save what was compressed as they are",
}

_ONE_PROCESS = "with one process: rank 0 of 1"

# Names that an expression stands for -> it, and what a user should know.
_EXPRESSIONS = {
    "fix_batch_if_needed": ("(lambda batch: batch)", "padding of samples is left out by the run itself"),
    "get_device_map": (
        "(lambda model: {name: (tensor.device, tensor.device) for name, tensor in model.named_parameters()})",
        "no map is kept: every weight is where the model is",
    ),
    "get_local_gpu_group_size": ("(lambda: 1)", _ONE_PROCESS),
    "get_rank_partition": ('"{}[:{}]".format', ""),  # dividing batches among processes is the run's business
    "init_gpu_group_dist": ("(lambda *_: (0, 1, 0))", _ONE_PROCESS),
    "update_offload_parameter": ("(lambda module, name, data: getattr(module, name).data.copy_(data))", ""),
}

# Converters of a checkpoint that is decoded, for which nothing has to be given.
_READERS = ("AutoAWQConverter", "CompressedTensorsDequantizer", "FP8BlockDequantizer", "ModelOptNvfp4Converter")

# Functions that a script puts in place of a model's own, so that it can be traced.
_PATCHES = ("fast_pos_embed_interpolate",)

_OWN_ARGUMENTS = "its fields are arguments of oneshot and train themselves"
_FOUND = "pairs are found by probing the model; mappings= of the modifier names others"
_STREAMED = "leave it out: with a folder and an output_dir, weights are streamed"

_ADVICE = {
    "AWQ_MAPPING_REGISTRY": _FOUND,
    "DataTrainingArguments": _OWN_ARGUMENTS,
    "DatasetArguments": _OWN_ARGUMENTS,
    "ModelArguments": _OWN_ARGUMENTS,
    "RecipeArguments": _OWN_ARGUMENTS,
    "apply": "oneshot(...), and train(...) for a recipe that trains",
    "calculate_offload_device_map": _STREAMED,
    "compress": "oneshot(...), and train(...) for a recipe that trains",
    "custom_offload_device_map": _STREAMED,
    "get_layer_mappings_from_architecture": _FOUND,
    "mllama_data_collator": "leave it out: samples with images are batched by the run itself",
    "skip_weights_initialize": "leave it out: load_model initializes nothing that it reads",
    "Modifier": "a modifier of one's own is written for other hooks here: docs/plugins.md",
    "ModelCompressor": "coldpress.load_model(folder) decodes a compressed checkpoint",
    "Observer": "an observer of one's own has another contract here: docs/plugins.md",
    "Recipe": "pass the recipe's file or text to oneshot(recipe=...)",
    "TextGenerationDataset": "pass the data themselves to oneshot(dataset=...), or write a plugin: docs/plugins.md",
}


@frozen
class Equivalent:
    """What becomes of one name.

    Attributes:
        kind: moved to another module; dropped, since a call of it is its argument; an expression that is written in
            its place; a reader of checkpoints, which goes with the argument that it is; a patch, which goes with the
            statement; kept, since it works as it is; or missing, and left in the script all the same.
        module: where it is imported from; where nothing is, it is where the script has it from.
        name: what it is called there; or the expression.
        why: what a user should know; empty where nothing changes.
        offered: whether it is there, as far as that can be known.
    """

    kind: Kind
    module: str
    name: str
    why: str = ""
    offered: bool = True


def is_foreign(module: str | None) -> bool:
    """Whether a module belongs to one of the packages whose imports are rewritten."""
    return module is not None and module.partition(".")[0] in PACKAGES


def find_equivalent(module: str, name: str) -> Equivalent:
    """What the name of a module of llm-compressor or compressed-tensors is here.

    Args:
        module: full name, `llmcompressor.modifiers.quantization`.
        name: of an attribute of it.
    """
    if name in _DROPPED:
        return Equivalent("dropped", module, name, _DROPPED[name])
    if name == "init_dist":
        why = "with one process: torchrun --nproc-per-node 1"
        return Equivalent("moved", "torch.distributed", "init_process_group", why)
    if name in _EXPRESSIONS:
        return Equivalent("expression", module, *_EXPRESSIONS[name])
    if name in _PATCHES:
        return Equivalent("patch", module, name, "nothing is traced: the model's own function will do")
    if name in _READERS:
        return Equivalent("reader", module, name, "what a checkpoint holds is read from its config.json")
    if name == "convert_checkpoint":
        return Equivalent("moved", "coldpress", "convert", "to= says how it is stored: 'dense' is whole weights")
    if module.partition(".")[0] == "llmcompressor":
        return _of_llmcompressor(module, name)
    return _of_compressed_tensors(module, name)


def _of_llmcompressor(module: str, name: str) -> Equivalent:
    if name in _SAME and name in (*coldpress.__all__, "__version__"):
        return Equivalent("moved", "coldpress", name)
    if module.startswith("llmcompressor.modifiers") and name.endswith("Modifier") and name != "Modifier":
        installed = any(plugin.name == name for plugin in registry.available("modifiers"))
        why = "" if installed else "no installed plugin offers it"
        return Equivalent("moved", "coldpress.modifiers", name, why, offered=installed)
    beside = _beside_a_modifier(name) if module.startswith("llmcompressor.modifiers") else None
    if beside is not None:
        return Equivalent("moved", beside, name)
    if name == "SparseAutoModelForCausalLM":
        return Equivalent("moved", "transformers", "AutoModelForCausalLM")
    if name.startswith("Traceable") and "For" in name:  # nothing is traced: transformers' own class will do
        return Equivalent("moved", "transformers", name.removeprefix("Traceable"))
    if module.startswith("llmcompressor.modeling") and name.endswith(_MODEL_CLASSES) and hasattr(transformers, name):
        return Equivalent("moved", "transformers", name)
    return Equivalent("missing", module, name, _ADVICE.get(name, "it has no equivalent"))


def _beside_a_modifier(name: str) -> str | None:
    """The module of an installed modifier that also offers this name, as one offers `AWQMapping`."""
    for plugin in registry.available("modifiers"):
        with suppress(BrokenPluginError):
            plugin.load()
            if name in getattr(import_module(plugin.entry.module), "__all__", ()):
                return plugin.entry.module
    return None


def _of_compressed_tensors(module: str, name: str) -> Equivalent:
    if not module.startswith("compressed_tensors.quantization"):
        return Equivalent("missing", module, name, _ADVICE.get(name, "it has no equivalent"))
    if name == "QuantizationArgs":
        return Equivalent("moved", "coldpress", name)
    if name == "QuantizationScheme":
        return Equivalent("moved", "coldpress", "Scheme")
    if _PRESET.fullmatch(name) and not name.endswith("_DATA"):
        return Equivalent("moved", "coldpress.schemes.presets", name)
    return Equivalent("kept", module, name, "works as it is where the library compressed-tensors is installed")
