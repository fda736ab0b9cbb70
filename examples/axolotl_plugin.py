"""Sparse and quantization-aware fine-tuning in Axolotl, with the recipe in its configuration file.

Put this file where Python finds it, and into the configuration

    plugins: [axolotl_plugin.ColdpressPlugin]
    coldpress:
      recipe:
        finetuning_stage:
          finetuning_modifiers:
            ConstantPruningModifier: {targets: ["re:.*proj.weight"], start: 0}
      distill_teacher: path/to/teacher

The recipe is the one that Axolotl's plugin for llm-compressor takes.
"""

import json
from typing import Any

from coldpress.training import CompressionCallback

try:
    from axolotl.integrations.base import BasePlugin
except ImportError:  # so that the class can be tried without Axolotl
    BasePlugin = object


class ColdpressPlugin(BasePlugin):
    """Adds the callback to the Trainer that Axolotl makes; scales that are learned need a Trainer of your own."""

    def get_input_args(self) -> str:
        """Where the part of the configuration is described."""
        return f"{__name__}.ColdpressArgs"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[CompressionCallback]:
        """The callback, with the recipe of the configuration."""
        settings = dict(cfg.coldpress)
        recipe = settings["recipe"]
        text = recipe if isinstance(recipe, str) else json.dumps(recipe)
        return [CompressionCallback(text, distill_teacher=settings.get("distill_teacher"))]


try:
    from pydantic import BaseModel
except ImportError:
    BaseModel = object


class ColdpressArgs(BaseModel):
    """The part of the configuration."""

    coldpress: dict[str, Any] | None = None
