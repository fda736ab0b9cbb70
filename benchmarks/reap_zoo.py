"""REAP on every mixture of experts that transformers can build: half of the experts go, and the rest loads again.

    python benchmarks/reap_zoo.py [TYPE ...] [--write]

For each type of causal language model whose configuration speaks of experts a tiny random model is built, and half of
its eight experts go (all but two where random weights send tokens to few); transformers loads what was written, and
its logits are compared with those of the model in memory.  Types that are refused are listed with the reason.
"""

import argparse
import json
import logging
import sys
import tempfile
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from attrs import asdict, frozen
from transformers import AutoConfig

from coldpress import oneshot
from coldpress.errors import CalibrationError, ColdpressError
from coldpress.modifiers import REAPPruningModifier

sys.path.insert(0, str(Path(__file__).parent.parent / "core" / "tests" / "dataflow"))
import zoo

RESULTS = Path(__file__).parent / "results"
SECONDS = 120  # limit for one type
FEW = 4  # experts of the zoo's models
DENSE = ("num_dense_layers", "first_k_dense_replace", "mlp_only_layers")  # blocks at the beginning without experts
COUNTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")


@frozen
class Row:
    """What came of one type.

    Attributes:
        type: as transformers registers it.
        outcome: pruned, refused, wrong, or why there was nothing to try.
        change: largest difference of logits between the model in memory and what was loaded, over the largest logit.
        lost: keys that transformers misses or does not expect.
        minds: whether the weight of a chosen expert depends on others, by the report.
        why: it was refused or not built.
    """

    type: str
    outcome: str
    change: float | None = None
    lost: tuple[str, ...] = ()
    minds: bool | None = None
    why: str = ""


def speaks_of_experts(model_type: str) -> bool:
    """Whether a configuration of this type, or a part of it, has a setting that speaks of experts."""
    try:
        return "expert" in json.dumps(AutoConfig.for_model(model_type).to_dict(), default=str)
    except Exception:  # transformers raises anything
        return False


def build(model_type: str) -> Any:
    """A tiny model that runs, of eight experts where its configuration has one number of them."""
    small = zoo.build(model_type)
    config = small.config
    for part in (config, config.get_text_config()):
        for key, value in part.to_dict().items():
            if value in (1, FEW) and key in COUNTS:  # one, where that is the default
                setattr(part, key, 2 * FEW)
            if key in DENSE and value:
                setattr(part, key, type(value)())
    try:
        model = zoo._from_configuration(config)
        zoo.logits(model, zoo.token_batch())
    except Exception:  # transformers raises anything
        return zoo.build(model_type)
    return model


def examine(model_type: str, folder: Path) -> Row:
    """Prune a tiny model of one type, and load it again."""
    try:
        with zoo.time_limit(SECONDS):
            model = build(model_type)
    except Exception as error:
        return Row(model_type, "not built", why=_first_line(error))
    data = [zoo.token_batch(rows=4, length=24), zoo.token_batch()]
    try:
        model.save_pretrained(folder / "source")
        type(model).from_pretrained(folder / "source")
    except Exception as error:
        return Row(model_type, "not loaded again as it is", why=_first_line(error))
    try:
        found = prune(model, data, folder / "out")
        return compare(model_type, found, folder / "out", data)
    except ColdpressError as error:
        return Row(model_type, "refused", why=_first_line(error))
    except Exception as error:  # transformers raises anything
        return Row(model_type, "wrong", why=_first_line(error))


def prune(model: Any, data: list[dict[str, torch.Tensor]], folder: Path) -> Any:
    """Half of the experts, or all but two where the data reach fewer."""
    try:
        return oneshot(model, REAPPruningModifier(sparsity=0.5), dataset=data, output_dir=folder, quiet=True)
    except CalibrationError:
        return oneshot(model, REAPPruningModifier(keep=2), dataset=data, output_dir=folder, restart=True, quiet=True)


def compare(model_type: str, found: Any, folder: Path, data: list[dict[str, torch.Tensor]]) -> Row:
    """Load what was written, and see whether it says what the model in memory says."""
    again, info = type(found).from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    expected, loaded = zoo.logits(found, data[0]), zoo.logits(again.eval(), data[0])
    lines = json.loads((folder / "report.json").read_text(encoding="utf-8"))["layers"]
    minds = [line["notes"]["router_minds_others"] for line in lines if line["kind"] == "Mixture"]
    lost = (*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"])
    change = float((loaded - expected).abs().max() / expected.abs().max())
    return Row(model_type, "pruned", change, tuple(map(str, lost)), minds[0])


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200] if text else ''}"


def page(rows: list[Row], command: str) -> str:
    """The table for a person."""
    pruned = [row for row in rows if row.outcome == "pruned"]
    right = [row for row in pruned if not row.lost and row.change is not None and row.change < 1e-5]
    words = {True: "yes", False: "no", None: "not known"}
    lines = [
        "# REAP on every mixture of experts",
        "",
        f"`{command}` on {date.today()}, transformers {transformers.__version__}.",
        "",
        f"{len(rows)} types speak of experts; {len(pruned)} are pruned, and {len(right)} of these load in transformers "
        "with no missing or unexpected key and say what the model in memory says.",
        "",
        "| type | change of logits | keys lost | router minds experts that are gone |",
        "|---|--:|---|---|",
        *(f"| {row.type} | {row.change:.1e} | {', '.join(row.lost[:2])} | {words[row.minds]} |" for row in pruned),
        "",
        "| type | | why |",
        "|---|---|---|",
        *(f"| {row.type} | {row.outcome} | {row.why.replace('|', '/')} |" for row in rows if row.outcome != "pruned"),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Examine the types and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="all that speak of experts, if none is named")
    parser.add_argument("--write", action="store_true", help="write results/reap_zoo.{md,json}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for model_type in options.types or filter(speaks_of_experts, zoo.model_types()):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(examine(model_type, Path(folder)))
        print(rows[-1], file=sys.stderr, flush=True)
    text = page(rows, "python benchmarks/reap_zoo.py --write")
    print(text)
    if options.write:
        (RESULTS / "reap_zoo.md").write_text(text, encoding="utf-8")
        found: list[dict[str, Any]] = [asdict(row) for row in rows]
        (RESULTS / "reap_zoo.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
