"""What training gives back on SmolLM2: 2:4 sparsity, three and two bits; and what the callback costs.

    python benchmarks/training.py sparse --steps 300 --write
    python benchmarks/training.py qat --bits 3 --steps 200 --write
    python benchmarks/training.py overhead --write

Models are trained on the calibration text of coldpress/short and judged on its held-out text, which shares no work
with it.  A run that is stopped, by hand or by `--minutes`, goes on at its last checkpoint when it is called again;
with `--now` it ends there, and what is measured is what the steps until then gave.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from remembered import Remembered
from transformers import Trainer, TrainerCallback, TrainingArguments

import coldpress
from coldpress.arguments import DatasetArguments
from coldpress.calibration.training_rows import load_training_rows, padding_collator
from coldpress.modifiers import (
    ConstantPruningModifier,
    GPTQModifier,
    OutputDistillationModifier,
    QATModifier,
    SparseGPTModifier,
)
from coldpress.training import CompressionCallback

HERE = Path(__file__).parent
OUT = HERE.parent / "out" / "training"  # empty it where another model or one-shot setting is asked for
TOKENS = 4096  # of held-out text
LINEAR: dict[str, Any] = {"ignore": ["lm_head"]}


class Stop(TrainerCallback):
    """Ends the process, with a checkpoint, when its time is over."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have a checkpoint written."""
        control.should_save = control.should_save or time.monotonic() > self.end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End after it was."""
        if time.monotonic() > self.end and state.global_step < state.max_steps:
            raise SystemExit(f"stopped at step {state.global_step} of {state.max_steps}: call it again")


def judge(model: Any, original: Any, tokenizer: Any, window: int) -> dict[str, float]:
    """Perplexity of held-out text, and divergence from the original."""
    found = coldpress.perplexity(model, tokenizer, window=window, max_tokens=TOKENS)
    apart = coldpress.divergence(model, original, tokenizer, window=window, max_tokens=TOKENS)
    return {
        "perplexity": found.value,
        "kl": apart.kl,
        "kl_standard_error": apart.kl_standard_error,
        "top1_agreement": apart.top1_agreement,
    }


def trained(name: str, start: Path, recipe: Any, options: argparse.Namespace) -> Any:
    """The model that training makes of a compressed one, with the CPU seconds that it took here."""
    folder = OUT / f"{name}-{options.steps}"
    checkpoints = Path(f"{folder}.checkpoints")
    done = sorted(int(one.name.partition("-")[2]) for one in checkpoints.glob("checkpoint-*"))
    if not folder.exists():
        coldpress.train(
            str(start),
            recipe,
            distill_teacher=options.model,
            dataset="coldpress/short",
            max_seq_length=options.length,
            concatenate_data=True,
            output_dir=folder,
            max_steps=done[-1] if done and options.now else options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=options.rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(options.steps // 20, 1),
            save_steps=options.save,
            save_total_limit=1,
            resume_from_checkpoint=bool(done) or None,
            callbacks=[Stop(options.minutes)],
            device="cpu",
            measure=False,
            quiet=True,
            logging_steps=max(options.steps // 30, 1),
        )
    return coldpress.load_model(folder, dtype="float32", device="cpu")


def sparse(options: argparse.Namespace) -> dict[str, Any]:
    """2:4 by SparseGPT, then sparse fine-tuning with distillation."""
    start = OUT / "sparsegpt-2of4"
    if not start.exists():
        coldpress.oneshot(
            options.model,
            SparseGPTModifier(mask_structure="2:4", **LINEAR),
            dataset="coldpress/short",
            num_calibration_samples=options.samples,
            max_seq_length=512,
            output_dir=start,
            format="dense",
            precision="float32",
            return_model=False,
            restart=True,
        )
    recipe = [ConstantPruningModifier(**LINEAR), OutputDistillationModifier(temperature=options.temperature)]
    found = compared("sparse", start, recipe, options)
    before, after = (
        dict(coldpress.load_model(one).named_parameters()) for one in (start, folder_of("sparse", options))
    )
    kept = [torch.equal(before[name] == 0, after[name] == 0) for name in before if name.endswith("proj.weight")]
    return {**found, "layers whose zeros are the same": f"{sum(kept)} of {len(kept)}"}


def qat(options: argparse.Namespace) -> dict[str, Any]:
    """GPTQ, then quantization-aware training with distillation."""
    name = f"w{options.bits}g32"
    start = OUT / f"gptq-{name}"
    if not start.exists():
        weights = {"num_bits": options.bits, "group_size": 32}
        coldpress.oneshot(
            options.model,
            GPTQModifier(config_groups={"all": {"targets": ["Linear"], "weights": weights}}, **LINEAR),
            dataset="coldpress/short",
            num_calibration_samples=options.samples,
            max_seq_length=512,
            output_dir=start,
            return_model=False,
            restart=True,
        )
    recipe = [QATModifier(ranges=options.ranges), OutputDistillationModifier(orig_scale=0.0)]
    return compared(f"qat-{name}-{options.ranges}", start, recipe, options)


def folder_of(name: str, options: argparse.Namespace) -> Path:
    """Where a trained model is."""
    return OUT / f"{name}-{options.steps}"


def compared(name: str, start: Path, recipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The original, the model before training and after it."""
    model = trained(name, start, recipe, options)
    original = Remembered(coldpress.load_model(options.model, dtype="float32", device="cpu"))
    tokenizer = coldpress.load_tokenizer(options.model)
    first = coldpress.load_model(start, dtype="float32", device="cpu")
    report = json.loads((folder_of(name, options) / "report.json").read_text())
    found: dict[str, Any] = {
        "the original": judge(original, original, tokenizer, options.window),
        "one shot": judge(first, original, tokenizer, options.window),
        "after training": judge(model, original, tokenizer, options.window),
        "steps": report["training"]["steps"],
        "tokens a step": options.length * options.batch,
        "learning rate": options.rate,
    }
    lost = found["one shot"]["perplexity"] - found["the original"]["perplexity"]
    back = found["one shot"]["perplexity"] - found["after training"]["perplexity"]
    return {**found, "share of lost perplexity that came back": back / lost}


class Counted(CompressionCallback):
    """A callback that counts the CPU seconds of its own, those at each forward among them."""

    spent = 0.0

    def attach(self, *args: Any, **more: Any) -> None:
        """Count from here."""
        super().attach(*args, **more)
        assert self.lifecycles is not None
        hook: Any = self.lifecycles._hook
        hook._check = self._counting(hook._check)
        self.spent = 0.0

    def on_step_begin(self, *args: Any, **more: Any) -> None:
        """Counted."""
        self._counting(super().on_step_begin)(*args, **more)

    def on_optimizer_step(self, *args: Any, **more: Any) -> None:
        """Counted."""
        self._counting(super().on_optimizer_step)(*args, **more)

    def _counting(self, call: Any) -> Any:
        def counted(*args: Any, **more: Any) -> Any:
            begin = time.process_time()
            found = call(*args, **more)
            self.spent += time.process_time() - begin
            return found

        return counted


@torch.no_grad()
def halve(model: Any) -> None:
    """Make every second weight zero."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.view(-1)[::2] = 0


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of a step without a callback, and of the callback's own part, without a modifier and with masks."""
    tokenizer = coldpress.load_tokenizer(options.model)
    model = coldpress.load_model(options.model, dtype="float32", device="cpu")
    arguments = DatasetArguments(dataset="coldpress/short", max_seq_length=options.length)
    rows = load_training_rows(arguments, tokenizer, model=model, most=options.steps * options.batch)
    kinds = {"none": None, "no modifier": [], "masks": [ConstantPruningModifier(**LINEAR)]}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(options.repeats):
        for name, recipe in kinds.items():
            halve(model)  # steps without masks fill the zeros
            callback = None if recipe is None else Counted(recipe)
            settings = TrainingArguments(
                output_dir=str(OUT / "overhead"),
                max_steps=options.steps,
                per_device_train_batch_size=options.batch,
                learning_rate=1e-9,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
                use_cpu=True,
            )
            trainer = Trainer(
                model=model.train(),
                args=settings,
                train_dataset=rows,
                data_collator=padding_collator(tokenizer),
                callbacks=[] if callback is None else [callback],
            )
            begin = time.process_time()
            trainer.train()
            spent = time.process_time() - begin if callback is None else callback.spent
            seconds[name].append(spent / options.steps)
    least = {name: min(values) for name, values in seconds.items()}
    share = {name: f"{100 * value / least['none']:.2f} %" for name, value in least.items() if name != "none"}
    return {
        "CPU seconds of a step without a callback": round(least["none"], 3),
        "CPU seconds of the callback in a step": {name: round(least[name], 4) for name in share},
        "share of a step": share,
        "all": seconds,
    }


def main() -> None:
    """Measure, print, and with --write keep it in results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sparse", "qat", "overhead"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--window", type=int, default=512, help="of perplexity")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--ranges", default="learned")
    parser.add_argument("--save", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--now", action="store_true", help="end at the last checkpoint")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = {"sparse": sparse, "qat": qat, "overhead": overhead}[options.what](options)
    print(json.dumps(found, indent=1))
    if options.write:
        name = f"training-{options.what}" + (f"-w{options.bits}" if options.what == "qat" else "")
        stem = HERE / "results" / name
        stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(table(found, options), encoding="utf-8")


def table(found: dict[str, Any], options: argparse.Namespace) -> str:
    """The result in words."""
    used = {name: value for name, value in vars(options).items() if name not in ("what", "write", "minutes")}
    lines = [f"# {options.what}", "", f"`python benchmarks/training.py {options.what}`, {used}", ""]
    judged = {name: value for name, value in found.items() if isinstance(value, dict) and "perplexity" in value}
    if judged:
        lines += [
            f"On {TOKENS} tokens of held-out text:",
            "",
            "| model | perplexity | KL | top 1 |",
            "|---|--:|--:|--:|",
        ]
        lines += [
            f"| {name} | {one['perplexity']:.2f} | {one['kl']:.4f} ± {one['kl_standard_error']:.4f} | "
            f"{one['top1_agreement']:.3f} |"
            for name, one in judged.items()
        ]
        lines.append("")
    lines += [f"- {name}: {value}" for name, value in found.items() if name not in judged and name != "all"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
