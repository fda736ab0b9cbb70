"""Saving later: `model.save_pretrained(folder)` of a model that was compressed in memory writes it compressed."""

from pathlib import Path
from typing import Any

from coldpress.checkpoint import CheckpointWriter, Format
from coldpress.checkpoint.attachments import attachments_of, refuse_attachments
from coldpress.checkpoint.names import CheckpointNames
from coldpress.checkpoint.output import Output
from coldpress.experts import fused_state_dict
from coldpress.report import Report
from coldpress.run.job import Job


def offer_saving(job: Job, form: Format, report: Report) -> None:
    """Make the model's own `save_pretrained` write the compressed checkpoint, as scripts for llm-compressor expect.

    With `save_compressed=False` it is the model's own again, and writes dense weights.
    """
    model: Any = job.state.model
    dense = getattr(model, "save_pretrained", None)
    if dense is None:
        return

    def save_pretrained(save_directory: str | Path, *, save_compressed: bool = True, **settings: Any) -> None:
        """Write the model as a compressed checkpoint, with its recipe and report.

        Args:
            save_directory: a folder that does not exist, is empty, or is replaced with `overwrite=True`.
            save_compressed: False writes the weights in their dense form, with transformers' own writer.
            **settings: `overwrite` and `max_shard_size`, or those of transformers when dense.
        """
        if not save_compressed:
            refuse_attachments(model)
            dense(save_directory, **{"state_dict": fused_state_dict(model), **settings})
            return
        with Output(CheckpointWriter(save_directory, **settings), form) as output:
            attached = [("save_pretrained", one) for one in attachments_of(model, CheckpointNames())]
            output.prepare(job.state, job.state.schemes, attached)
            job.save(output, report)

    model.save_pretrained = save_pretrained
