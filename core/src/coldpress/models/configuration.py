"""The configuration of a model, and its settings of generation, as transformers reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldpress.arguments.hub import hub_is_reachable
from coldpress.checkpoint.config import quantization_in, without_quantization
from coldpress.checkpoint.reader import read_json
from coldpress.errors import ModelError
from coldpress.foreign import reading
from coldpress.models.location import locate


def load_config(source: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration in a folder, in a JSON file or on the hub.

    What it says of compression is left out: how weights are stored is a matter of the folder that holds them.

    Raises:
        ModelError: there is none, or transformers cannot read it.
    """
    from transformers import AutoConfig

    there = Path(source).expanduser().exists()
    if not there:
        locate(source)  # says what is near
    elif (config_file := Path(source).expanduser() / "config.json").is_file():
        found = read_json(config_file)
        quantization_in(found)  # which transformers would stumble over
        if not trust_remote_code:
            _refuse_code(found, source)
    with reading(f"cannot read a configuration at {source!r}", ModelError):
        config = AutoConfig.from_pretrained(
            Path(source).expanduser() if there else source,
            trust_remote_code=trust_remote_code,
            local_files_only=not there and not hub_is_reachable(),
        )
    return without_quantization(config)


def _refuse_code(config: Mapping[str, Any], source: str) -> None:
    """Refuse a configuration that only code of the model's own can read.

    Raises:
        ModelError: names the code.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    code = config.get("auto_map")
    own = code.get("AutoConfig") if isinstance(code, Mapping) else None
    if own is not None and config.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(
            f"{source!r} brings code of its own, {own!r} and what that imports, without which its configuration is not "
            "known: read the code, and pass trust_remote_code_model=True to run it; or compress without the model "
            "(model_free_ptq, --model-free)"
        )


def read_generation_settings(model: Any, folder: Path) -> None:
    """Give a model the settings of generation that lie in its folder, if any do."""
    from transformers import GenerationConfig

    if model.can_generate() and (folder / "generation_config.json").is_file():
        with reading(f"cannot read {folder / 'generation_config.json'}", ModelError):
            model.generation_config = GenerationConfig.from_pretrained(folder)


def first_line(error: BaseException) -> str:
    """The first line of a message that is not empty; the error's class where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
