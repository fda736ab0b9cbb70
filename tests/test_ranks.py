"""Several ranks give the bytes of one process, whichever saw what; a rank that fails ends the run, and is named."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from coldpress import oneshot
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import tiny_llama, tiny_tokenizer
from coldpress.testing.ranks import PerRank, oneshot_together

TIMED = ("report.json", "report.html", "manifest.json")  # they say how long things took

KV_CACHE = "kv_cache_scheme: {num_bits: 8, type: float, strategy: tensor, dynamic: false, symmetric: true}"
RECIPES = {
    "rounding": "QuantizationModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}",
    "static inputs and keys": f"QuantizationModifier: {{scheme: FP8, ignore: [lm_head], {KV_CACHE}}}",
    "gptq": "GPTQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}",
    "gptaq": "GPTQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head], correction: gptaq}",
    "guided": "GPTQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head], guidance: sampled, guidance_groups: 2}",
    "awq": "AWQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}",
    "smoothquant": "[{SmoothQuantModifier: {}}, {GPTQModifier: {scheme: W8A8, ignore: [lm_head]}}]",
    "sparsegpt": "SparseGPTModifier: {sparsity: 0.5, mask_structure: '2:4', ignore: [lm_head]}",
    "wanda": "WandaModifier: {sparsity: 0.5, ignore: [lm_head]}",
    "owl": "WandaModifier: {sparsity: 0.5, sparsity_profile: owl, owl_m: 5, owl_lmbda: 0.08, ignore: [lm_head]}",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "llama"
    tiny_llama(hidden=64).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def rows(count, seed=0):
    """Token ids of so many samples, each of another length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 250, (20 + 7 * i,), generator=generator).tolist() for i in range(count)]


def call(source, output, recipe, samples=5, **settings):
    data = {"dataset": rows(samples), "num_calibration_samples": samples, "max_seq_length": 64, "batch_size": 1}
    return {"model": str(source), "recipe": recipe, "output_dir": str(output), **data, **settings}


def digests(folder):
    return {p.name: sha256(p.read_bytes()).hexdigest() for p in Path(folder).iterdir() if p.name not in TIMED}


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_give_the_bytes_of_one_process(source, tmp_path, size):
    alone = [call(source, tmp_path / f"alone {name}", recipe) for name, recipe in RECIPES.items()]
    ranks = [call(source, tmp_path / f"ranks {name}", recipe) for name, recipe in RECIPES.items()]
    for one in alone:
        oneshot(quiet=True, **one)

    assert oneshot_together(size, *ranks) == [[None] * len(ranks)] * size
    found = {name: digests(tmp_path / f"ranks {name}") == digests(tmp_path / f"alone {name}") for name in RECIPES}
    assert found == dict.fromkeys(RECIPES, True)


@pytest.mark.slow
def test_torchrun_starts_the_command_line(source, tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(f'{{"text": "{word} is pressed cold, and nothing is heated"}}\n' for word in ("oil", "it")))
    command = ["-m", "coldpress", "compress", str(source), "--scheme", "W4A16", "--group-size", "32"]
    command += ["--dataset", str(data), "--num-calibration-samples", "2", "--output"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(*arguments):
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)

    alone = run(*command, str(tmp_path / "alone"))
    ranks = run(*torchrun, *command, str(tmp_path / "ranks"))

    assert (alone.returncode, ranks.returncode) == (0, 0), ranks.stderr
    assert ranks.stdout.count(str(tmp_path / "ranks")) == 1
    assert digests(tmp_path / "ranks") == digests(tmp_path / "alone")


def test_more_ranks_than_batches_and_experts_that_one_rank_saw(source, tmp_path):
    mixture = tmp_path / "mixture"
    tiny_mixture("qwen3_moe", experts=8).save_pretrained(mixture)
    tiny_tokenizer().save_pretrained(mixture)
    recipe = "GPTQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head, 're:.*gate$']}"
    few = {"max_seq_length": 3, "moe_calibrate_all_experts": False}  # experts see one token, or none
    cases = {
        "one batch": call(source, tmp_path / "alone one batch", RECIPES["gptq"], samples=1),
        "experts": call(mixture, tmp_path / "alone experts", recipe, samples=3, **few),
        "experts static": call(
            mixture,
            tmp_path / "alone experts static",
            "QuantizationModifier: {scheme: FP8, ignore: [lm_head, 're:.*gate$']}",
            samples=3,
            moe_calibrate_all_experts=False,
        ),
        "in memory": call(source, tmp_path / "alone in memory", RECIPES["gptq"], stream_weights=False),
        "layer_sequential": call(
            source, tmp_path / "alone layer_sequential", RECIPES["gptq"], pipeline="layer_sequential"
        ),
        "basic": call(source, tmp_path / "alone basic", RECIPES["static inputs and keys"], pipeline="basic"),
        "independent": call(source, tmp_path / "alone independent", RECIPES["smoothquant"], pipeline="independent"),
        "original": call(source, tmp_path / "alone original", RECIPES["gptq"], propagate_error=False),
    }
    for one in cases.values():
        oneshot(quiet=True, **one)
    ranks = [{**one, "output_dir": str(tmp_path / f"ranks {name}")} for name, one in cases.items()]

    assert oneshot_together(2, *ranks) == [[None] * len(ranks)] * 2
    found = {name: digests(tmp_path / f"ranks {name}") == digests(tmp_path / f"alone {name}") for name in cases}
    assert found == dict.fromkeys(cases, True)


def test_ranks_that_work_on_something_else_are_refused_before_the_first_stage(source, tmp_path):
    def differing(**settings):
        return {**call(source, tmp_path / "out", RECIPES["gptq"]), **settings}

    found = oneshot_together(
        2,
        differing(seed=PerRank([0, 1])),
        differing(recipe=PerRank([RECIPES["gptq"], RECIPES["awq"]])),
        differing(dataset=PerRank([rows(5), rows(5, seed=1)])),
        differing(model=PerRank([str(source), str(tmp_path / "nothing")])),
    )

    first, second = found
    assert all("rank 1 does not work on the same as rank 0" in one for one in first[:3])
    assert "seed: 0 on rank 0, 1 on rank 1" in first[0]
    assert "GPTQModifier" in first[1]
    assert "data" in first[2]
    assert "rank 1 failed" in first[3]
    assert "nothing" in first[3]
    assert "nothing" in second[3]
    assert not (tmp_path / "out").exists()


def test_a_rank_that_fails_tells_the_others(source, tmp_path):
    found = oneshot_together(2, {**call(source, tmp_path / "out", RECIPES["gptq"]), "ends": PerRank([-2, None])})

    assert "No space left" in found[0][0]
    assert found[1][0].startswith("RankError: rank 0 failed: [Errno 28] No space left on device")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(("size", "ending", "later"), [(2, 1, 3), (3, 0, 1)])
def test_a_rank_that_is_killed_is_named_and_any_number_of_ranks_resumes(source, tmp_path, size, ending, later):
    whole, out = call(source, tmp_path / "whole", RECIPES["gptq"]), call(source, tmp_path / "out", RECIPES["gptq"])
    oneshot(quiet=True, **whole)
    ends = PerRank([2 if rank == ending else None for rank in range(size)])

    found = oneshot_together(size, {**out, "ends": ends})

    others = [one[0] for rank, one in enumerate(found) if rank != ending]
    assert all(f"rank {ending} ended" in one for one in others)
    assert not (tmp_path / "out").exists()
    assert oneshot_together(later, out) == [[None]] * later
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
