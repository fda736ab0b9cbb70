"""A model and its tokenizer, in memory, from wherever they are."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from coldpress.arguments import PRECISIONS
from coldpress.arguments.hub import hub_is_reachable
from coldpress.errors import ArgumentError, CheckpointError, ModelError, suggest
from coldpress.models.auto import model_class
from coldpress.models.hub import hub_folder
from coldpress.models.source import find_source

log = logging.getLogger(__name__)

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "full": torch.float32,
}
_TROUBLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError)  # of transformers


def load_model(
    source: Any,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    revision: str = "main",
    config: str | None = None,
) -> Any:
    """Load a model of the class that its configuration names, ready to evaluate.

    A folder that is already compressed becomes a dense model whose weights are what its codes stand for, with
    quantization of activations simulated.

    Args:
        source: a folder, a `.gguf` file, a hub id, an embedded name, or a model, which is returned as it is.
        dtype: of the weights; auto is what the checkpoint says, and bfloat16 for GGUF, whose blocks have no dtype.
        device: where the model is put; None takes an accelerator if there is one, and leaves a loaded model alone.
        trust_remote_code: run Python code that comes with the model.
        revision: branch, tag or commit on a hub.
        config: folder, JSON file or hub id of a configuration to use instead of the model's own; not for GGUF.

    Raises:
        ModelError: there is no such model, or transformers cannot build it.
        CheckpointError: a file of it is missing, truncated or corrupt; the file is named.
        ArgumentError: there is no such dtype or device.
    """
    if not isinstance(source, (str, Path)):
        return _check_loaded(source) if device is None else _check_loaded(source).to(_device(device))
    kind, target = placement(dtype, device)
    found = find_source(str(source))
    more = {"trust_remote_code": trust_remote_code}
    if config is not None and found.kind == "gguf":
        raise ArgumentError(f"{found.name} is a GGUF file, whose configuration cannot be replaced by {config!r}")
    if config is not None:
        more["config"] = load_config(config, **more)
    if found.kind == "gguf":
        from coldpress.models.gguf import load_gguf_model

        assert found.path is not None
        model = load_gguf_model(found.path, torch.bfloat16 if kind == "auto" else kind)
    else:
        model = _load_folder(found.name, found.path or hub_folder(found.name, revision), kind, more)
    model.config._name_or_path = found.name
    log.info("loaded %s: %s in %s", found.name, type(model).__name__, model.dtype)
    return model.to(target).eval()


def load_config(source: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration in a folder, in a JSON file or on the hub.

    What it says of compression is left out: how weights are stored is a matter of the folder that holds them.

    Raises:
        ModelError: there is none, or transformers cannot read it.
    """
    from transformers import AutoConfig

    there = Path(source).expanduser().exists()
    if not there:
        find_source(source)  # says what is near
    try:
        config = AutoConfig.from_pretrained(
            Path(source).expanduser() if there else source,
            trust_remote_code=trust_remote_code,
            local_files_only=not there and not hub_is_reachable(),
        )
    except _TROUBLE as error:
        raise ModelError(f"cannot read a configuration at {source!r}: {_first_line(error)}") from error
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def read_generation_settings(model: Any, folder: Path) -> None:
    """Give a model the settings of generation that lie in its folder, if any do."""
    from transformers import GenerationConfig

    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def placement(dtype: str | torch.dtype, device: str | torch.device | None) -> tuple[Any, torch.device]:
    """What a name of a dtype means ("auto" stays), and where a model is put.

    Raises:
        ArgumentError: there is no such dtype or device.
    """
    return _dtype(dtype), _device(device) if device is not None else _best_device()


def load_tokenizer(
    source: Any, model: Any = None, *, trust_remote_code: bool = False, revision: str = "main"
) -> Any | None:
    """Load the tokenizer that lies at `source` or, if that is a model in memory, where that was loaded from.

    Args:
        source: as for `load_model`; a tokenizer is returned as it is.
        model: where to look (`config._name_or_path`) when `source` is None or a model.
        trust_remote_code: run Python code that comes with the tokenizer.
        revision: branch, tag or commit on a hub.

    Returns:
        The tokenizer; None when there is none, which is an error only for those who need one.

    Raises:
        ModelError: `source` is text and names nothing, or there is a tokenizer and it cannot be read.
    """
    if isinstance(source, torch.nn.Module):
        source, model = None, source
    elif callable(getattr(source, "save_pretrained", None)) and callable(source):
        return source
    if source is None:
        source = getattr(getattr(model, "config", None), "_name_or_path", None)
        if not source or not _exists(source):
            return None
    found = find_source(str(source))
    if found.kind == "gguf":
        from coldpress.models.gguf import load_gguf_tokenizer

        assert found.path is not None
        return load_gguf_tokenizer(found.path)
    folder = found.path or hub_folder(found.name, revision, weights=False)
    return _load_tokenizer(found.name, folder, trust_remote_code)


def need_tokenizer(tokenizer: Any, purpose: str) -> Any:
    """The tokenizer, or an error that says what it is needed for.

    Raises:
        ModelError: it is None.
    """
    if tokenizer is None:
        raise ModelError(
            f"{purpose} needs a tokenizer, and there is none beside the model: pass tokenizer=, which may be a folder, "
            "a hub id or the object itself"
        )
    return tokenizer


def _check_loaded(model: Any) -> Any:
    if not isinstance(model, torch.nn.Module):
        raise ArgumentError(f"model must be a path, a name or a torch module, got {type(model).__name__}")
    return model


def _dtype(name: str | torch.dtype) -> Any:
    """A torch dtype, or "auto"."""
    if isinstance(name, torch.dtype) or name == "auto":
        return name
    if name not in _DTYPES:
        raise ArgumentError(f"dtype must be one of {', '.join(PRECISIONS)}, got {name!r}{suggest(name, PRECISIONS)}")
    return _DTYPES[name]


def _device(name: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # no such name; torch was not built for it
        raise ArgumentError(f"device {str(name)!r} cannot be used here: {_first_line(error)}") from error


def _best_device() -> torch.device:
    device = torch.accelerator.current_accelerator(check_available=True)
    return device if device is not None else torch.device("cpu")


def _load_folder(name: str, folder: Path, dtype: Any, more: dict[str, Any]) -> Any:
    config = _read_config(folder / "config.json")
    quantization = config.get("quantization_config")
    if quantization:
        from coldpress.models.compressed import load_compressed

        model = load_compressed(folder, quantization, dtype=dtype, **more)
        read_generation_settings(model, folder)
        return model
    if any(folder.glob("*.safetensors*")):
        from coldpress.checkpoint import CheckpointReader

        CheckpointReader(folder).check()
    elif not any(folder.glob("*.bin")):
        raise CheckpointError(f"{name!r} holds a config.json and no weights: model.safetensors is missing")
    return _from_pretrained(str(folder), dtype=dtype, **more)


def _from_pretrained(name: str, **settings: Any) -> Any:
    """Transformers' own loading; what it would only warn of is an error here."""
    from safetensors import SafetensorError

    trust = settings["trust_remote_code"]
    config = settings.pop("config", None) or load_config(name, trust_remote_code=trust)
    try:
        kind = model_class(config, trust_remote_code=trust)
        model, loading = kind.from_pretrained(name, config=config, output_loading_info=True, **settings)
    except SafetensorError as error:
        raise CheckpointError(f"a safetensors file of {name!r} is corrupt or truncated: {error}") from error
    except _TROUBLE as error:
        raise ModelError(f"transformers cannot load {name!r}: {_first_line(error)}") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name!r} lacks {len(missing)} tensors of a {type(model).__name__}, the first is {missing[0]!r}: "
            "the checkpoint is incomplete, or its config.json is another model's"
        )
    return model


def _load_tokenizer(name: str, folder: Path, trust_remote_code: bool) -> Any | None:
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    if not any((folder / file).is_file() for file in files):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except _TROUBLE as error:
        raise ModelError(f"transformers cannot read the tokenizer of {name!r}: {_first_line(error)}") from error


def _exists(source: str) -> bool:
    """Whether a model's own memory of where it came from still leads somewhere."""
    try:
        found = find_source(source)
    except ModelError:
        return False
    if found.kind != "hub":
        return True
    from transformers.utils import cached_file

    try:
        return bool(cached_file(source, "config.json", local_files_only=not hub_is_reachable()))
    except (OSError, ValueError):
        return False


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(config).__name__}")
    return config


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
