"""A model and its tokenizer, in memory, from wherever they are."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from coldpress.arguments import PRECISIONS
from coldpress.arguments.hub import hub_is_reachable
from coldpress.checkpoint.config import quantization_in
from coldpress.checkpoint.pickled import open_files, pickled_files
from coldpress.checkpoint.reader import read_json
from coldpress.distributed.start import local_device
from coldpress.errors import ArgumentError, CheckpointError, ModelError
from coldpress.foreign import reading
from coldpress.models.auto import build_model, model_class
from coldpress.models.configuration import first_line, load_config, read_generation_settings
from coldpress.models.dense import load_dense, source_checkpoint
from coldpress.models.hub import hub_folder, on_this_disk
from coldpress.models.location import Location, locate
from coldpress.models.mapped import own_memory
from coldpress.models.promise import check_promises, check_size
from coldpress.spelling import suggest

log = logging.getLogger(__name__)

_WITHOUT_MODEL = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
"""Files of a folder that holds a tokenizer or a processor alone."""

_MOST_TOKENS = 10_000_000  # ids of a tokenizer; the largest vocabularies have a million
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "full": torch.float32,
}


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
        source: a folder, a hub id, a file or a name that an installed source reads, or a model, which is returned as
            it is.
        dtype: of the weights; auto is what the checkpoint says.
        device: where the model is put; None takes an accelerator if there is one, and leaves a loaded model alone.
        trust_remote_code: run Python code that comes with the model.
        revision: branch, tag or commit on a hub.
        config: folder, JSON file or hub id of a configuration to use instead of the folder's.

    Raises:
        ModelError: there is no such model, or transformers cannot build it.
        CheckpointError: a file of it is missing, truncated or corrupt; the file is named.
        ArgumentError: there is no such dtype or device.
    """
    if not isinstance(source, (str, Path)):
        return _check_loaded(source) if device is None else _check_loaded(source).to(_device(device))
    kind, target = placement(dtype, device)
    found = on_this_disk(locate(str(source)), revision)
    more = {"trust_remote_code": trust_remote_code}
    if config is not None:
        more["config"] = load_config(config, **more)
    model = load_located(found, kind, more)
    if target.type == "cpu":
        own_memory(model)
    model.config._name_or_path = found.name
    log.info("loaded %s: %s in %s", found.name, type(model).__name__, model.dtype)
    return model.to(target).eval()


def load_located(found: Location, dtype: Any, more: Mapping[str, Any]) -> Any:
    """The model of a folder or file, on the CPU.

    Args:
        found: where it is; not on a hub.
        dtype: of its weights, or "auto".
        more: `trust_remote_code`, and `config` to use in place of the model's own.
    """
    if found.source is None:
        assert found.path is not None
        return _load_folder(found.name, found.path, dtype, more)
    source = found.open()
    checkpoint = source_checkpoint(found, source, **more)
    if checkpoint is None:
        return source.load(None if dtype == "auto" else dtype)
    return load_dense(checkpoint, dtype, trust_remote_code=more["trust_remote_code"])


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
        The tokenizer; None when there is none, which is an error only where one is needed.

    Raises:
        ModelError: `source` is text and names nothing, or there is a tokenizer and it cannot be read.
    """
    if isinstance(source, torch.nn.Module):
        source, model = None, source
    elif callable(getattr(source, "save_pretrained", None)) and callable(source):
        return source
    found = _origin(source, model)
    if found is None:
        return None
    own = found.open().tokenizer() if found.source is not None else None
    if own is not None or (found.path is not None and found.path.is_file()):
        return own
    folder = found.path or hub_folder(found.name, revision, weights=False)
    return _load_tokenizer(found.name, folder, trust_remote_code)


def load_processor(
    source: Any, model: Any = None, *, trust_remote_code: bool = False, revision: str = "main"
) -> Any | None:
    """Load what reads images and sound for a model, from where its tokenizer is.

    Args:
        source: as for `load_tokenizer`.
        model: where to look when `source` is None or a model.
        trust_remote_code: run Python code that comes with the processor.
        revision: branch, tag or commit on a hub.

    Returns:
        The processor; None where there is none.

    Raises:
        ModelError: `source` is text and names nothing, or there is a processor and it cannot be read.
    """
    from transformers import AutoProcessor

    if isinstance(source, torch.nn.Module):
        source, model = None, source
    found = _origin(source, model)
    if found is None or (found.path is not None and found.path.is_file()):
        return None
    folder = found.path or hub_folder(found.name, revision, weights=False)
    if not any((folder / f"{name}_config.json").is_file() for name in ("preprocessor", "processor")):
        return None
    with reading(f"transformers cannot read the processor of {found.name!r}", ModelError):
        return AutoProcessor.from_pretrained(str(folder), trust_remote_code=trust_remote_code)


def _origin(source: Any, model: Any) -> Location | None:
    """Where to look: what `source` names, or where a model in memory was loaded from, if that is still there."""
    if source is None:
        source = getattr(getattr(model, "config", None), "_name_or_path", None)
        if not source or not _exists(source):
            return None
    path = Path(str(source)).expanduser()
    if not (path / "config.json").is_file() and any((path / name).is_file() for name in _WITHOUT_MODEL):
        return Location(str(source), path)
    return locate(str(source))


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


_DEVICES = ("cpu", "cuda", "mps", "xpu")


def _device(name: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=local_device(torch.device(name))).device
    except (RuntimeError, AssertionError) as error:  # no such name; torch was not built for it
        hint = suggest(str(name).partition(":")[0], _DEVICES)
        why = hint or f": {first_line(error)}; without a device what is here is taken"
        raise ArgumentError(f"device {str(name)!r} cannot be used here{why}") from error


def _best_device() -> torch.device:
    device = torch.accelerator.current_accelerator(check_available=True)
    return local_device(device) if device is not None else torch.device("cpu")


def _load_folder(name: str, folder: Path, dtype: Any, more: Mapping[str, Any]) -> Any:
    quantization = quantization_in(_read_config(folder / "config.json"))
    if quantization:
        from coldpress.models.compressed import load_compressed

        model = load_compressed(folder, quantization, dtype=dtype, **more)
        read_generation_settings(model, folder)
        return model
    if any(folder.glob("*.safetensors*")) or pickled_files(folder):
        reader = open_files(folder)
        reader.check()
        trust = more["trust_remote_code"]
        settings = more.get("config") or load_config(str(folder), trust_remote_code=trust)
        check_promises(settings, reader.names(), name)
        build = partial(build_model, dtype=torch.float32, trust_remote_code=trust)
        check_size(settings, build, reader, name)
        more = {**more, "config": settings}
    elif not any(folder.glob("*.bin")):
        raise CheckpointError(f"{name!r} holds a config.json and no weights: model.safetensors is missing")
    return _from_pretrained(str(folder), dtype=dtype, **more)


def _from_pretrained(name: str, **settings: Any) -> Any:
    """Transformers' own loading; what it would only warn of is an error here."""
    from safetensors import SafetensorError

    trust = settings["trust_remote_code"]
    config = settings.pop("config", None) or load_config(name, trust_remote_code=trust)
    try:
        with reading(f"transformers cannot load {name!r}", ModelError):
            kind = model_class(config, trust_remote_code=trust)
            model, loading = kind.from_pretrained(name, config=config, output_loading_info=True, **settings)
    except ModelError as error:
        if isinstance(error.__cause__, SafetensorError):
            raise CheckpointError(
                f"a safetensors file of {name!r} is corrupt or truncated: {error.__cause__}"
            ) from error
        raise
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
    with reading(f"transformers cannot read the tokenizer of {name!r}", ModelError):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        last, token = max(((number, token) for token, number in tokenizer.get_vocab().items()), default=(0, ""))
    if last > _MOST_TOKENS:  # a copy of such a tokenizer lists every id that is not used
        raise ModelError(f"the tokenizer of {name!r} gives {token!r} the id {last}; the most is {_MOST_TOKENS}")
    return tokenizer


def _exists(source: str) -> bool:
    """Whether a model's own memory of where it came from still leads somewhere."""
    try:
        found = locate(source)
    except ModelError:
        return False
    if found.path is not None:
        return True
    from transformers.utils import cached_file

    try:
        return bool(cached_file(source, "config.json", local_files_only=not hub_is_reachable()))
    except (OSError, ValueError):
        return False


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    quantization = config.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict):
        raise CheckpointError(
            f"{path}: quantization_config must be a JSON object, not {type(quantization).__name__} {quantization!r}"
        )
    return config
