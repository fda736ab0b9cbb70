"""What a plugin says of a data set on the hub: where it is, and what its rows become."""

from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen


@frozen(kw_only=True, eq=False)
class HubDataset:
    """A data set on the hub, or a copy of it in a folder.

    Rows are read as they are needed, not fetched as a whole.

    Attributes:
        repo_id: where it is on the hub, such as "openai/gsm8k".
        to_sample: from a row to what calibration reads: `text`, or `messages` in the form of chat templates; beside
            them `images` (a list), or `audio` (samples of a wave) and `sampling_rate`, which go through the processor.
            With both `messages` and `text`, the text is for processors without a chat template.
        config_name: the configuration that is read if the user names none.
        split: the split that is read if the user names none.
        split_names: what users may call a split -> its name on the hub.
        chat_template: a Jinja template for tokenizers that have none, as those of base models.
    """

    repo_id: str
    to_sample: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    config_name: str | None = None
    split: str = "train"
    split_names: Mapping[str, str] = field(factory=dict)
    chat_template: str | None = None
