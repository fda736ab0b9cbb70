"""What lies beside the weights of a model: tokenizer, processor, chat template, code, licence; copied as it is."""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from coldpress.checkpoint.journal import NAME as JOURNAL
from coldpress.checkpoint.pickled import open_files
from coldpress.checkpoint.published import format_of, quantization_of
from coldpress.checkpoint.reader import read_json
from coldpress.errors import CheckpointError
from coldpress.installed import container_suffixes
from coldpress.source import Weights

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"

log = logging.getLogger(__name__)

WRITTEN = frozenset(
    {CONFIG, GENERATION_CONFIG, "evaluation.json", "manifest.json", "recipe.yaml", "report.html", "report.json"}
)
"""Small files that a run writes itself."""

# Weights under the names that libraries give them, their indices, and what training leaves beside them.
_LIBRARIES = "pytorch_model|model|tf_model|flax_model|rust_model|consolidated|openvino_model|adapter_model"
_WEIGHTS = re.compile(rf"({_LIBRARIES})\b.*\.(safetensors|bin|pt|pth)|.*\.index(\.\w+)?\.json", re.DOTALL)
_OTHER_LIBRARIES = (".ggml", ".h5", ".llamafile", ".mlmodel", ".msgpack", ".onnx", ".onnx_data", ".ot", ".pte")
_TRAINING = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|training_args).*\.(pt|pth|bin)|trainer_state\.json|latest|zero_to_fp32\.py"
)
# What a run writes itself, or what speaks of weights that are not copied, and of how they were quantized.
_OTHERS = {
    *WRITTEN,
    "adapter_config.json",
    "hf_quant_config.json",
    "quant_config.json",
    "quantization_config.json",
    "quantize_config.json",
}
_NO_PART = re.compile(r"\..*|__.*|checkpoint-\d+|global_step\d+|node_modules")  # folders
_OF_TOKENIZER = (
    "added_tokens",
    "additional_chat_templates",
    "chat_template",
    "merges",
    "sentencepiece",
    "special_tokens",
    "spiece",
    "tokenizer",
    "vocab",
)


@frozen
class Origin:
    """Where a model came from.

    Attributes:
        folder: with its config.json.
        has_tokenizer: whether the tokenizer of the run is the one that lies there; if not, its files are not copied.
        extra: tensors in its files that the model has no place for; they are copied.
        stored: name of each tensor that its files hold in another dtype than the model to its name there.
        weights: that these tensors are read from; None for the files of the folder.
        left_out: small files that describe how weights were stored, and so are not copied.
    """

    folder: Path
    has_tokenizer: bool = True
    extra: tuple[str, ...] = ()
    stored: Mapping[str, str] = field(factory=dict)
    weights: Weights | None = None
    left_out: frozenset[str] = frozenset()

    def open(self) -> Weights:
        """The tensors of its files."""
        return self.weights or open_files(self.folder)


def copy_companions(origin: Origin, target: Path) -> None:
    """Copy every file and folder beside a model's weights that a run does not write itself.

    Other models that lie in folders of the model's own, and weights in the form of other libraries, are left behind.

    Args:
        origin: the folder of the model.
        target: the folder of the checkpoint, which may lie inside of it; files that are there are replaced.

    Raises:
        OSError: a file cannot be read or written.
    """
    odd: list[Path] = []
    for name in companions(origin, target, odd):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin.folder / name, target / name)
    for path in odd:
        what = "is a link to a file that is not there" if path.is_symlink() else "is a pipe, a device or a socket"
        log.warning("%s %s, and is not copied to the output", path, what)


def companions(origin: Origin, target: Path, odd: list[Path] | None = None) -> Iterator[Path]:
    """What `copy_companions` copies, relative to the folder of the model.

    Args:
        origin: the folder of the model.
        target: the folder of the checkpoint.
        odd: takes what would be copied and is neither a file nor a folder.
    """
    weights = _files_of_weights(origin.folder)
    for path in _walk(origin.folder, origin.folder, target.resolve(), seen=set()):
        name = path.relative_to(origin.folder)
        if path in weights or name.name.startswith(".") or _TRAINING.fullmatch(name.name):
            continue
        if _is_of_other(name.name) or (name.name == str(name) and name.name in _OTHERS | origin.left_out):
            continue
        if _WEIGHTS.fullmatch(name.name) and (len(name.parts) == 1 or name.suffix in (".pth", ".pt")):
            continue
        if not origin.has_tokenizer and name.parts[0].startswith(_OF_TOKENIZER):
            continue
        if path.is_file():
            yield name
        elif odd is not None:
            odd.append(path)


def is_of_weights(name: str) -> bool:
    """Whether a file of this name would be taken for weights of the model that it lies beside, or for their index."""
    return name.endswith(".safetensors") or _is_of_other(name) or _WEIGHTS.fullmatch(name) is not None


def _is_of_other(name: str) -> bool:
    """Whether a file holds a model for another library, or in a container that a source reads."""
    suffix = Path(name).suffix
    return suffix in _OTHER_LIBRARIES or suffix.removeprefix(".") in container_suffixes()


def _files_of_weights(folder: Path) -> Sequence[Path]:
    try:
        form = format_of(quantization_of(folder))
        opened = None if form is None else form.open(folder)
        return open_files(folder).files if opened is None else opened.files
    except CheckpointError:  # it has none
        return []


def _walk(folder: Path, root: Path, target: Path, *, seen: set[str]) -> Iterator[Path]:
    """What is below a folder and no folder, links followed, but for folders that are no part of the model."""
    seen.add(os.path.realpath(folder))
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in seen and not _is_apart(path, root, target):
            yield from _walk(path, root, target, seen=seen)


def _is_apart(folder: Path, root: Path, target: Path) -> bool:
    """Whether a folder inside of a model's folder has nothing to do with it: another model, or what tools leave."""
    if _NO_PART.fullmatch(folder.name) or target.is_relative_to(folder.resolve()):
        return True
    if any((folder / name).exists() for name in (JOURNAL, "manifest.json", "pyvenv.cfg")):
        return True
    kind = _model_type(folder)
    return kind is not None and kind == _model_type(root) and any(is_of_weights(name) for name in os.listdir(folder))


def _model_type(folder: Path) -> Any:
    try:
        return read_json(folder / CONFIG).get("model_type")
    except CheckpointError:
        return None
