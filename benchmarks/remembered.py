"""A model that remembers what it said."""

from typing import Any

from torch import Tensor, nn


class Remembered(nn.Module):
    """A model that is asked the same windows by several judges, and runs each of them once."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self._outputs: dict[tuple[int, ...], Any] = {}

    def forward(self, input_ids: Tensor, **arguments: Any) -> Any:
        """As the model, of windows that differ."""
        key = tuple(input_ids.flatten().tolist())
        if key not in self._outputs:
            self._outputs[key] = self.model(input_ids=input_ids, **arguments)
        return self._outputs[key]
