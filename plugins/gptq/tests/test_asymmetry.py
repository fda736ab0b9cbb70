"""GPTAQ and Qronos beside slow versions of what the papers say, on the tokens themselves and in float64."""

import pytest
import torch

from coldpress import QuantizationArgs
from coldpress.numerics import dequantize, quantize
from coldpress.testing import draw
from coldpress_gptq.algorithm.asymmetry import gptaq_weights, qronos_weights
from coldpress_gptq.algorithm.solver import Grid, Problem, gptq, prepare, scale_rows, searched_qparams, solve

INT4 = QuantizationArgs(num_bits=4, strategy="channel")
both = pytest.mark.parametrize("method", [gptaq_weights, qronos_weights])
orders = pytest.mark.parametrize("by_activity", [True, False])
WIDTH = 32


def inputs(seed=1, *, tokens=300, change=0.1):
    """Of the compressed model and of the original one, [T, I] each, channels correlated."""
    x = draw(tokens, WIDTH, seed=seed) @ draw(WIDTH, WIDTH, seed=seed + 1)
    return x, x + change * draw(tokens, WIDTH, seed=seed + 2) @ draw(WIDTH, WIDTH, seed=seed + 3)


def statistics(x, original):
    return x.t() @ x, (original - x).t() @ x


def error(weight, rounded, x, original):
    """Of outputs, beside those of the original model."""
    return float((original.double() @ weight.double().t() - x.double() @ rounded.double().t()).square().sum())


def damped(gram, order):
    gram = gram.double()[order][:, order]
    return gram + 0.01 * gram.diagonal().mean() * torch.eye(WIDTH, dtype=torch.float64)


def solved(weight, prepared, qparams):
    ((solution,),) = gptq([Problem([weight], [qparams], prepared)], INT4, block_size=128, keep_zeros=False)
    return dequantize(solution.codes, *qparams, INT4)


@both
@orders
def test_equal_inputs_change_nothing(method, by_activity):
    weight, (x, _) = draw(20, WIDTH), inputs()
    gram, cross = statistics(x, x)

    prepared = prepare(gram, dampening_frac=0.01, by_activity=by_activity)

    torch.testing.assert_close(method(weight, cross, prepared), weight, rtol=0, atol=0)


@orders
def test_gptaq_makes_up_for_each_input_by_the_columns_behind_it(by_activity):
    weight, (x, original) = draw(20, WIDTH), inputs()
    gram, cross = statistics(x, original)
    prepared = prepare(gram, dampening_frac=0.01, by_activity=by_activity)
    order = prepared.order
    hessian, moved = damped(gram, order), cross.double()[order][:, order]
    expected = weight.double()[:, order].clone()
    for k in range(WIDTH - 1):  # least squares of column k's difference on the inputs behind it
        share = torch.linalg.solve(hessian[k + 1 :, k + 1 :], moved[k, k + 1 :])
        expected[:, k + 1 :] += weight.double()[:, order[k], None] * share

    found = gptaq_weights(weight, cross, prepared)

    torch.testing.assert_close(found[:, order], expected.float(), rtol=1e-3, atol=1e-4)


@orders
def test_qronos_codes_are_those_of_the_paper(by_activity):
    weight, (x, original) = draw(20, WIDTH), inputs()
    gram, cross = statistics(x, original)
    prepared = prepare(gram, dampening_frac=0.01, by_activity=by_activity)
    qparams = searched_qparams(weight, INT4, prepared.importance)

    rows = [scale_rows(part, INT4, (20, WIDTH)) for part in qparams]
    corrected = qronos_weights(weight, cross, prepared)
    codes = solve([[corrected]], [prepared], Grid(INT4, *rows), block_size=128, keep_zeros=False).codes

    found = dequantize(codes, *qparams, INT4)
    expected = textbook_qronos(weight, x, original, prepared.order, qparams)
    assert (~torch.isclose(found, expected.float(), rtol=1e-4, atol=1e-5)).float().mean() < 0.01


def textbook_qronos(weight, x, original, order, qparams):
    """Tokens and nothing but tokens: dampening is one more token for each column, of which the original has the same.

    Each number is rounded to what is best while the weights to come stay; then those get their best.
    """
    ridge = (0.01 * (x.t() @ x).diagonal().mean()).sqrt() * torch.eye(WIDTH)
    x, original = torch.cat([x, ridge]).double()[:, order], torch.cat([original, ridge]).double()[:, order]
    left, wanted = weight.double()[:, order].clone(), original @ weight.double()[:, order].t()  # [O, I], [T, O]
    scale, point = (part.double() for part in qparams)
    for k in range(WIDTH):
        others = x @ left.t() - x[:, k, None] * left[:, k]  # [T, O]: of what is rounded, and of what is not
        best = (x[:, k] @ (wanted - others)) / x[:, k].square().sum()  # [O]
        left[:, k] = dequantize(quantize(best[:, None], scale, point, INT4), scale, point, INT4)[:, 0]
        if k + 1 < WIDTH:
            owed = wanted - x[:, : k + 1] @ left[:, : k + 1].t()
            left[:, k + 1 :] = torch.linalg.lstsq(x[:, k + 1 :], owed).solution.t()
    return left[:, order.argsort()]


@both
def test_outputs_are_closer_to_those_of_the_original(method):
    better = 0
    for seed in range(10):
        weight, (x, original) = draw(20, WIDTH, seed=seed), inputs(seed + 20, change=0.3)
        gram, cross = statistics(x, original)
        prepared = prepare(gram, dampening_frac=0.01, by_activity=True)
        qparams = searched_qparams(weight, INT4, prepared.importance)
        found = solved(method(weight, cross, prepared), prepared, qparams)
        better += error(weight, found, x, original) < error(weight, solved(weight, prepared, qparams), x, original)

    assert better >= 9


@both
def test_permuting_columns_permutes_the_result(method):
    weight, (x, original) = draw(20, WIDTH), inputs()
    gram, cross = statistics(x, original)
    turned = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(5))

    found, expected = (
        method(w, c, prepare(g, dampening_frac=0.01, by_activity=True))
        for w, c, g in (
            (weight[:, turned], cross[turned][:, turned], gram[turned][:, turned]),
            (weight, cross, gram),
        )
    )

    torch.testing.assert_close(found, expected[:, turned], rtol=1e-3, atol=1e-4)
