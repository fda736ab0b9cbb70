"""What a checkpoint of a Trainer holds of modifiers: masks and scales, in a file of its own beside the weights."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from coldpress.errors import CheckpointError

NAME = "coldpress_training.safetensors"


def write_state(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the state of lifecycles into a folder."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / NAME)


def read_state(folder: Path) -> dict[str, Tensor]:
    """The state that a folder holds.

    Raises:
        CheckpointError: it holds none, or the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {NAME}: it was saved without this callback, so its masks are unknown")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
