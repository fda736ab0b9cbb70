"""Which tokens of a row count, where the data say it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from coldpress.calibration.sample import COUNTED, as_tensor
from coldpress.errors import CalibrationError

_NO_LABEL = -100


def loss_mask_of(columns: Mapping[str, Any], where: str) -> Tensor:
    """1 for tokens that count: of a column that says it, or those that have a label.

    Args:
        columns: of a row or a batch.
        where: what it is, for messages.

    Raises:
        CalibrationError: no column tells.
    """
    for name in COUNTED:
        if isinstance(mask := as_tensor(columns.get(name)), Tensor):
            return mask != 0
    labels = as_tensor(columns.get("labels"))
    if not isinstance(labels, Tensor):
        raise CalibrationError(
            f"{where} has no loss mask: use_loss_mask needs a column {', '.join(COUNTED)} or labels (with -100 where "
            "nothing counts), or a chat template that marks the answers with {% generation %}"
        )
    return labels != _NO_LABEL
