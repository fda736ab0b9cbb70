"""The configuration of a model, and its settings of generation, as transformers reads them."""

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
        quantization_in(read_json(config_file))  # which transformers would stumble over
    with reading(f"cannot read a configuration at {source!r}", ModelError):
        config = AutoConfig.from_pretrained(
            Path(source).expanduser() if there else source,
            trust_remote_code=trust_remote_code,
            local_files_only=not there and not hub_is_reachable(),
        )
    return without_quantization(config)


def read_generation_settings(model: Any, folder: Path) -> None:
    """Give a model the settings of generation that lie in its folder, if any do."""
    from transformers import GenerationConfig

    if model.can_generate() and (folder / "generation_config.json").is_file():
        with reading(f"cannot read {folder / 'generation_config.json'}", ModelError):
            model.generation_config = GenerationConfig.from_pretrained(folder)


def first_line(error: BaseException) -> str:
    """The first line of a message that is not empty; the error's class where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
