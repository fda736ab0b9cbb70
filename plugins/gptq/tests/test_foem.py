"""FOEM: GPTQ with another feedback, beside the loop over columns that the paper writes down."""

import pytest
import torch

from coldpress.numerics import dequantize
from coldpress.plugin import QuantizationArgs, State
from coldpress.recipe import Recipe
from coldpress.registry import find
from coldpress.run.job import Job
from coldpress.schemes import number_format
from coldpress.testing.models import batches, tiny_llama
from coldpress_gptq import GPTQModifier
from coldpress_gptq.algorithm.foem import foem_feedback
from coldpress_gptq.algorithm.solver import Problem, gptq, loss_of, prepare

ARGS = QuantizationArgs(num_bits=3, group_size=-1)
DOWN = "model.layers.0.mlp.down_proj"


def problem(*, rows=8, columns=64, by_activity=True):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=draw)
    x = torch.randn(4 * columns, columns, generator=draw) @ (
        torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=draw)
    )
    scale = weight.abs().amax(1, keepdim=True) / 3.5
    prepared = prepare(x.t() @ x, dampening_frac=0.01, by_activity=by_activity)
    return weight, x, scale, prepared


def as_the_paper_says(weight, gram, scale, beta):
    """Column after column with the inverse's Cholesky factor: pull back, round, pass on less; from left to right."""
    gram = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    upper = torch.linalg.cholesky(torch.linalg.inv(gram.double()), upper=True).float()
    left, codes, grid = weight.clone(), torch.zeros_like(weight), number_format(ARGS)
    for j in range(weight.shape[1]):
        if j:
            left[:, j] -= beta * (left[:, j] - weight[:, j])
        codes[:, j] = grid.round(left[:, j] / scale[:, 0])
        error = left[:, j] - codes[:, j] * scale[:, 0] - beta * (left[:, j] - weight[:, j])
        left[:, j:] -= (error / upper[j, j])[:, None] * upper[j, j:]
    return codes


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.2, 0.9])
def test_codes_are_those_of_the_loop_in_the_paper(beta):
    weight, x, scale, prepared = problem(by_activity=False)
    steered = prepared._replace(steering=foem_feedback(prepared.factor.feedback, beta))
    (((found, *_),),) = gptq(
        [Problem([weight], [(scale, torch.zeros_like(scale))], steered)], ARGS, block_size=16, keep_zeros=False
    )
    wanted = as_the_paper_says(weight, x.t() @ x, scale, beta)

    rounded = number_format(ARGS).round(weight / scale)
    rows = (found.float() != rounded).any(1)  # a row that rounding serves better is rounded
    assert beta > 0.5 or bool(rows.any())
    assert float((found.float() == wanted)[rows].float().mean()) > 0.99 or not bool(rows.any())


def test_a_share_of_nothing_is_gptq_and_the_whole_share_rounding():
    feedback = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).triu(1)

    assert torch.equal(foem_feedback(feedback, 0.0), feedback)
    assert not foem_feedback(feedback, 1.0).any()


def test_the_error_that_is_reported_is_that_of_the_outputs():
    weight, _, scale, prepared = problem()
    steered = prepared._replace(steering=foem_feedback(prepared.factor.feedback, 0.2))
    point = torch.zeros_like(scale)
    ((found,),) = gptq([Problem([weight], [(scale, point)], steered)], ARGS, block_size=128, keep_zeros=False)

    torch.testing.assert_close(found.loss, loss_of(weight, dequantize(found.codes, scale, point, ARGS), prepared))


def run(**settings):
    state = State(model=tiny_llama(), batches=batches())
    modifier = GPTQModifier(scheme="W3A16", group_size=32, ignore=["lm_head"], **settings)
    Job(recipe=Recipe([modifier]), state=state, pipeline=find("pipelines", "sequential")()).run()
    return state.model.get_submodule(DOWN).weight


def test_it_is_a_correction_of_the_modifier_that_needs_no_second_stream():
    assert torch.equal(run(correction="foem", foem_beta=0.0), run())
    assert not torch.equal(run(correction="foem"), run())
    assert not GPTQModifier(scheme="W3A16", correction="foem").needs().original_inputs


@pytest.mark.parametrize("beta", [-0.1, 1.0])
def test_shares_out_of_range_are_refused(beta):
    with pytest.raises(ValueError, match="foem_beta"):
        GPTQModifier(scheme="W3A16", correction="foem", foem_beta=beta)
