"""Saving later: `model.save_pretrained(folder)` of a compressed model writes it compressed, as it is then.

Codes are not kept in memory: they are found again from the weights, by the scales that each layer remembers (see
`coldpress.quantized.Encoding`).  A copy of the model saves the copy, and a pickle of it can be saved too.
"""

import logging
import pickle
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, fields_dict, frozen
from torch import Tensor, nn

from coldpress.arguments.checks import path
from coldpress.arguments.save import SaveArguments, parse_save_arguments
from coldpress.checkpoint import CheckpointReader, CheckpointWriter, Format
from coldpress.checkpoint.attachments import attachments_of, refuse_attachments
from coldpress.checkpoint.companion import Origin
from coldpress.checkpoint.names import CheckpointNames
from coldpress.checkpoint.output import Output
from coldpress.checkpoint.replaced import files_of_user
from coldpress.entrypoints.places import check_apart, check_origin
from coldpress.errors import ArgumentError, ModelError
from coldpress.experts import fused_state_dict
from coldpress.models.dense_saving import SaveDense, dense_tensors
from coldpress.models.described import warn_of_undescribed
from coldpress.models.handed_over import has_adapters
from coldpress.modifier import Modifier
from coldpress.run.hooks import Hooks
from coldpress.run.job import Job
from coldpress.run.quantized_before import schemes_before
from coldpress.state import State

log = logging.getLogger(__name__)

_SAVE = "save_pretrained"
_BY_PLACE = ("is_main_process", "state_dict", "push_to_hub", "max_shard_size", "variant", "token")
_OURS = ("save_compressed", "overwrite", "quantization_format")
_PUSHING = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")

_OTHER_DTYPE = (
    "the model was compressed in %s and is %s now: its codes and scales are written as they are, from which readers "
    "compute weights in %s, apart from those in memory by the rounding of the coarser of the two; buffers that no "
    "checkpoint has, such as angles of positions, are in float32 again after loading"
)


@frozen(eq=False)
class FinishedRun:
    """What a checkpoint of a compressed model gets beside its tensors.

    Attributes:
        form: how layers are written.
        modifiers: whose `save` is called.
        state: of the run, without the model and the data.
        files: recipe, report and manifest, by name.
        origin: where the model came from.
        dtype: of the model; in another one its tensors are no longer those of its files.
        leads: the rank writes, where there are several.
    """

    form: Format
    modifiers: tuple[Modifier, ...]
    state: State
    files: Mapping[str, Any]
    origin: Origin | None
    dtype: torch.dtype | None
    leads: bool = True

    def __getstate__(self) -> tuple[Any, ...]:
        hooks = (self.modifiers, self.state)
        origin = self.origin
        if origin is not None and isinstance(origin.weights, CheckpointReader):
            origin = evolve(origin, weights=None)  # it is opened again
        elif origin is not None and origin.weights is not None:
            log.warning("tensors of %s that are no part of the model do not come along after unpickling", origin.folder)
            origin = evolve(origin, weights=None, extra=(), stored={})
        if not _is_picklable(hooks):  # a class of a script, say
            log.warning("files that modifiers write beside a checkpoint are not written after unpickling")
            hooks = (), State(model=nn.Identity(), seed=self.state.seed)
        return self.form, *hooks, self.files, origin, self.dtype, self.leads

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(fields_dict(FinishedRun), state, strict=True):
            object.__setattr__(self, name, value)


def finished_run(job: Job, files: Mapping[str, Any], form: Format) -> FinishedRun:
    """What is kept of a job, so that its model can be saved later."""
    dtype = getattr(job.state.model, "dtype", None)
    leads = job.state.share.ranks.leads
    return FinishedRun(form, tuple(job.modifiers), _without_model(job.state), dict(files), job.origin, dtype, leads)


def offer_saving(model: Any, run: FinishedRun) -> None:
    """Make the model's own `save_pretrained` write the compressed checkpoint, as scripts for llm-compressor expect."""
    own = vars(model).get(_SAVE)
    if callable(getattr(model, _SAVE, None)):
        own = own.own if isinstance(own, SavePretrained) else None if isinstance(own, SaveDense) else own
        vars(model)[_SAVE] = SavePretrained(model, run, own)


class SavePretrained:
    """`save_pretrained` of a model that was compressed.

    Args:
        model: as it is when it is saved.
        run: that compressed it.
        own: what stood on the instance before; None for the method of its class.
    """

    def __init__(self, model: Any, run: FinishedRun, own: Any = None) -> None:
        self.model, self.run, self.own = model, run, own

    def __call__(self, save_directory: str | Path, *arguments: Any, **settings: Any) -> None:
        """Write the model as a compressed checkpoint, with its recipe and report.

        Args:
            save_directory: a folder; a checkpoint that is there is replaced, as transformers does.
            *arguments: what transformers takes by its place: is_main_process, state_dict, push_to_hub, ...
            **settings: what transformers and llm-compressor take by name, see `SaveArguments`.

        Raises:
            ColdpressError: a layer was changed after it was quantized, an argument is not possible, the folder is the
                one that the model came from, ...; nothing is written then.
        """
        named = dict(zip(_BY_PLACE, arguments, strict=False))
        if len(arguments) > len(_BY_PLACE) or named.keys() & settings.keys():
            raise ArgumentError(f"save_pretrained takes a folder and {', '.join(_BY_PLACE)}, each once, or by name")
        if settings.get("save_compressed", True) is False:
            self._save_dense(save_directory, {**named, **settings})
            return
        parsed = parse_save_arguments({**named, **settings})
        folder = path(save_directory)
        if not isinstance(folder, str):
            raise ArgumentError(f"save_directory must be the path of a folder, got {save_directory!r}")
        if has_adapters(self.model):
            raise ModelError(
                "adapters (PEFT) were put into the model after it was compressed, and a compressed checkpoint has no "
                "place for them: save them by the PeftModel, or take them off by its unload(), and save the model then"
            )
        if not (parsed.is_main_process and self.run.leads):
            return
        if parsed.state_dict is not None:
            _check_state_dict(self.model, parsed.state_dict)
        with torch.inference_mode(False), torch.no_grad():
            self._save(folder, parsed)
        if parsed.push_to_hub:
            pushing = {name: getattr(parsed, name) for name in _PUSHING if getattr(parsed, name) is not None}
            self.model.push_to_hub(parsed.repo_id or Path(folder).name, **pushing)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SavePretrained":
        return SavePretrained(deepcopy(self.model, memo), self.run, self.own)

    def _save(self, folder: str, arguments: SaveArguments) -> None:
        origin = self.run.origin
        if origin is not None and not origin.folder.is_dir():
            log.warning("%s is gone: what lay beside the model's weights does not come along", origin.folder)
            origin = None
        dtype = getattr(self.model, "dtype", None)
        if self.run.dtype != dtype:
            log.warning(_OTHER_DTYPE, self.run.dtype, dtype, dtype)
            origin = None if origin is None else evolve(origin, stored={})
        check_apart(folder, self.model)
        warn_of_undescribed(self.model)
        if origin is not None:
            check_origin(folder, origin.folder)
        state = _without_model(self.run.state)
        state.model, state.schemes = self.model, schemes_before(self.model)
        size: dict[str, Any] = {"max_shard_size": arguments.max_shard_size} if arguments.max_shard_size else {}
        writer = CheckpointWriter(folder, overwrite=arguments.overwrite, any_folder=True, **size)
        with Output(writer, _form(self.run.form, arguments.quantization_format), origin) as output:
            attached = [("save_pretrained", one) for one in attachments_of(self.model, CheckpointNames())]
            output.prepare(state, state.schemes, attached)
            output.write(output.rest(state), state)
            output.write_others(state)
            Hooks(self.run.modifiers).save(state, output.folder)
            output.finish(state, self.run.files, left=files_of_user(writer.output))

    def _save_dense(self, folder: str | Path, settings: dict[str, Any]) -> None:
        """Have transformers write the dense weights; what only we take has no meaning there."""
        refuse_attachments(self.model)
        check_apart(path(folder), self.model)
        given = {name: value for name, value in settings.items() if name not in _OURS and value is not None}
        write = self.own or type(self.model).save_pretrained.__get__(self.model)
        write(path(folder), **{"state_dict": dense_tensors(self.model), **given})


def _without_model(state: State) -> State:
    """What hooks may ask at the end of a run, without the weights and the data."""
    return State(
        model=nn.Identity(),
        tokenizer=state.tokenizer,
        calibration=state.calibration,
        seed=state.seed,
        plan=state.plan,
        scratch=state.scratch,
        report=state.report,
        log=state.log,
        decisions=state._decisions,
    )


def _form(form: Format, quantization_format: str | None) -> Format:
    if quantization_format is None:
        return form
    if "quantization_format" not in fields_dict(type(form)):
        raise ArgumentError(f"quantization_format={quantization_format!r}: {type(form).__name__} has one form only")
    return evolve(form, quantization_format=quantization_format)  # type: ignore[call-arg]


def _check_state_dict(model: nn.Module, given: Mapping[str, Any]) -> None:
    """Refuse weights that are not the model's own.

    Raises:
        ArgumentError: names the first tensor that is missing, strange or different.
    """
    own = {**model.state_dict(keep_vars=True), **fused_state_dict(model)}
    ids = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    there = {ids[name] for name in given if name in ids}
    wrong = next((name for name in given if name not in own or not _is_same(given[name], own[name])), None)
    wrong = wrong or next((name for name, number in ids.items() if number not in there and name not in given), None)
    if wrong is not None:
        raise ArgumentError(
            f"state_dict is not the model's own: {wrong!r} differs. Codes are made of the weights of the model: call "
            "model.load_state_dict(state_dict), quantize it again, or leave state_dict out"
        )


def _is_same(given: Any, own: Tensor) -> bool:
    if given is own or not isinstance(given, Tensor):
        return given is own
    given, own = given.detach(), own.detach()
    if given.dtype != own.dtype or given.shape != own.shape:
        return False
    return given.data_ptr() == own.data_ptr() or torch.equal(given.to(own.device), own)


def _is_picklable(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except (AttributeError, TypeError, pickle.PicklingError):
        return False
    return True
