"""What lies beside the files of tensors: configuration, index, small files of the checkpoint, report, manifest."""

import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from coldpress.checkpoint import CheckpointWriter, Format
from coldpress.checkpoint.companion import CONFIG, GENERATION_CONFIG, Origin, copy_companions
from coldpress.checkpoint.config import replace_quantization
from coldpress.checkpoint.disk import as_utf8, disk_errors
from coldpress.checkpoint.parts import INDEX, StageParts
from coldpress.models.auto import build_model
from coldpress.models.configuration import load_config
from coldpress.report import Report, manifest_of
from coldpress.report.page import PAGE, page_of
from coldpress.shardwise.opening import Opened
from coldpress.shardwise.outline import Outline
from coldpress.shardwise.plan import Fates, Shard
from coldpress.state import State

_WITH_QUANTIZATION = ("expert_dtype",)
"""Keys of a configuration that speak of how weights were stored, beside `quantization_config`."""


@frozen(eq=False)
class Finish:
    """What completes an output.

    Attributes:
        opened: the checkpoint that was read.
        outline: of it.
        form: of the output.
        writer: of the output.
        fates: of all layers.
    """

    opened: Opened
    outline: Outline
    form: Format
    writer: CheckpointWriter
    fates: Fates

    def write(
        self,
        shards: Sequence[Shard],
        report: Report,
        state: State,
        *,
        binding: Mapping[str, Any],
        parts: Sequence[object],
    ) -> None:
        """Write everything but tensors, which are in the files of the writer, and give the folder its name.

        Raises:
            CheckpointError: the disk is full, ...
        """
        origin = Origin(self.opened.folder, left_out=self.opened.left_out)
        with disk_errors(self.writer.folder):
            copy_companions(origin, self.writer.folder)
            settings = self.opened.folder / GENERATION_CONFIG
            if settings.is_file():
                shutil.copyfile(settings, self.writer.folder / GENERATION_CONFIG)
        self.writer.write_json(CONFIG, self.config())
        self.writer.write_text("recipe.yaml", report.recipe)
        manifest = manifest_of(state, report, binding={**binding, "files": None}, parts=parts)
        manifest, content = {**manifest, "source": self.opened.name}, report.to_dict()
        self.writer.write_json("report.json", content)
        self.writer.write_text(PAGE, page_of(content, recipe=report.recipe, manifest=manifest))
        self.writer.finish(manifest, publish=partial(self._publish, shards))

    def config(self) -> dict[str, Any]:
        """`config.json` of the output: that of the checkpoint, with what the format says in place of how it was."""
        config: dict[str, Any] = copy.deepcopy(dict(self.opened.config))
        if self.opened.quantization:
            for name in _WITH_QUANTIZATION:
                config.pop(name, None)
        ignored = [name for name in self.outline.matrices if name not in self.fates.schemes]
        more = (attached,) if (attached := self.opened.attached()) else ()
        quantization = self.form.config(self.fates.schemes, ignored, *more)
        if quantization is not None:
            quantization = self.form.config_for(quantization, self._model, self.fates.schemes)
        replace_quantization(config, quantization)
        return config

    def _model(self) -> Any:
        """The model without weights; None where the installed transformers cannot build it."""
        try:
            with torch.device("meta"):
                return build_model(load_config(str(self.opened.folder)), dtype=torch.bfloat16)
        except Exception:  # of a configuration that nothing else is asked of
            return None

    def _publish(self, shards: Sequence[Shard], parts: StageParts, folder: Path) -> None:
        """Link the files under the names of the checkpoint's, and write their index where there are several."""
        weights: dict[str, str] = {}
        for shard in shards:
            source = self.writer.part(shard.number).with_suffix(".safetensors")
            _link(source, folder / shard.name)
            weights |= dict.fromkeys(parts.tensors_of(source), shard.name)
            parts.digests[shard.name] = parts.digest_of(source)
        if len(shards) > 1 or shards[0].name != "model.safetensors":
            index = {"metadata": {"total_size": parts.total_size()}, "weight_map": dict(sorted(weights.items()))}
            (folder / INDEX).write_bytes(as_utf8(json.dumps(index, indent=2, ensure_ascii=False) + "\n"))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without links
        shutil.copyfile(source, target)
