"""dense: the weights that the codes stand for, in the dtype of the model; a checkpoint like any other."""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from torch import Tensor

from coldpress.plugin import Attached, CheckpointError, Format, Quantized, Scheme, SchemeError, SchemeLookup


@frozen(kw_only=True)
class DenseFormat(Format):
    """Nothing is smaller on disk, and everything that reads the original model reads this one."""

    def check(self, scheme: Scheme, name: str, shape: tuple[int, int]) -> None:
        """Refuse a layer of which only the inputs are quantized: nothing of that would be written."""
        if scheme.weights is None:
            raise SchemeError(
                f"{name}: the format 'dense' keeps weights only, and this scheme quantizes none; "
                "use the format 'compressed-tensors' or drop the layer from the targets"
            )

    def tensors(self, quantized: Quantized) -> dict[str, Tensor]:
        """`weight`, [O, I], in the dtype of the scales, which is the model's."""
        assert quantized.scale is not None
        return {"weight": quantized.weight(quantized.scale.dtype)}

    def config(
        self, schemes: Mapping[str, Scheme], ignore: Sequence[str], attachments: Sequence[Attached] = ()
    ) -> dict[str, Any] | None:
        """Nothing: the configuration is that of the original model."""
        return None

    def read(self, config: Mapping[str, Any]) -> SchemeLookup:
        """Refuse: no checkpoint says that it is dense."""
        raise CheckpointError("a dense checkpoint says nothing of quantization; load it as a plain model")

    def restore(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Quantized:
        """Refuse: codes and scales were not kept."""
        raise CheckpointError("a dense checkpoint holds no codes and no scales; load it as a plain model")
