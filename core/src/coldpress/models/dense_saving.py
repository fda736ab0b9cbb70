"""Saving a model that was read from a compressed checkpoint, and is dense in memory: without what only we know."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from coldpress.attachment import every_attachment
from coldpress.checkpoint.attachments import refuse_attachments
from coldpress.errors import ArgumentError
from coldpress.experts import fused_state_dict


class SaveDense:
    """`save_pretrained` of a model that `load_model` returns.

    Args:
        model: as it is when it is saved.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, save_directory: str | Path, *arguments: Any, **settings: Any) -> None:
        """Have transformers write the dense weights, experts in the tensors that their class has.

        Args:
            save_directory: a folder.
            *arguments: what transformers takes by its place.
            **settings: what transformers takes by name.

        Raises:
            SchemeError: the model has an attachment without which its weights are those of another model.
            ArgumentError: it is to be compressed.
        """
        if settings.pop("save_compressed", False) or settings.pop("quantization_format", None):
            raise ArgumentError(
                "a model of load_model is dense in memory: pass it to oneshot, or copy the folder that it came from"
            )
        settings.pop("overwrite", None)
        refuse_attachments(self.model)
        weights = {"state_dict": dense_tensors(self.model)} if len(arguments) < 2 else {}
        type(self.model).save_pretrained(self.model, save_directory, *arguments, **{**weights, **settings})


def dense_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model as its class has them: experts fused, and nothing of attachments."""
    attached = {
        f"{name}.{part}" if name else part
        for name, _, attachment in every_attachment(model.named_modules(remove_duplicate=False))
        for part in attachment.buffers()
    }
    return {name: tensor for name, tensor in fused_state_dict(model).items() if name not in attached}
