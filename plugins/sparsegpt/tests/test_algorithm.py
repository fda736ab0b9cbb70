"""Theorems of SparseGPT, and the paper's own rule, written slowly and with inverses, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.numerics import Factor
from coldpress_sparsegpt.algorithm import prepare, sparsegpt

STRUCTURES = [None, (2, 4), (4, 8), (1, 4), (3, 5)]
over_structures = pytest.mark.parametrize("structure", STRUCTURES, ids=str)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(seed, width, tokens=None):
    """The Gram matrix of inputs whose channels are of unlike size and depend on each other, [I, I]."""
    x = random(seed, tokens or 4 * width, width) @ random(seed + 1, width, width)
    return (lambda x: x.t() @ x)(x * random(seed + 2, width).exp())


def pruned(weight, gram, *, sparsity=0.5, structure=None, block_size=128, keep_zeros=False, dampening_frac=0.01):
    (solution,) = sparsegpt(
        [weight],
        prepare(gram, dampening_frac=dampening_frac),
        sparsities=[sparsity],
        structure=structure,
        block_size=block_size,
        keep_zeros=keep_zeros,
    )
    return solution


def damped(gram, frac=0.01):
    return gram.double() + frac * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


def loss(weight, new, gram):
    """What the outputs of each row lose, [O], in float64."""
    error = weight.double() - new.double()
    return ((error @ gram) * error).sum(1)


def textbook(weight, gram, *, sparsity, structure, block_size):
    """Algorithm 1 of the paper, an inverse for every column: float64, weights updated forward."""
    w, width = weight.double().clone(), weight.shape[1]
    inverse = [torch.linalg.inv(gram[j:, j:]) for j in range(width)]  # of what is not decided yet
    cost = torch.tensor([float(one[0, 0]) for one in inverse], dtype=torch.float64)
    gone = torch.zeros_like(w, dtype=torch.bool)
    size = structure[1] if structure else block_size
    for start in range(0, width, size):
        stop = min(start + size, width)
        scores = w[:, start:stop].square() / cost[start:stop]
        if structure:
            chosen = scores.argsort(1)[:, : structure[1] - structure[0]]
            gone[:, start:stop].scatter_(1, chosen, True)
        else:
            flat = torch.zeros(scores.numel(), dtype=torch.bool)
            flat[scores.flatten().argsort()[: round(sparsity * scores.numel())]] = True
            gone[:, start:stop] = flat.view(scores.shape)
        for j in range(start, stop):
            error = torch.where(gone[:, j], w[:, j], 0.0) / cost[j]
            w[:, j:] -= error[:, None] * inverse[j][0]
            w[gone[:, j], j] = 0
    return w


@over_structures
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block_size", [8, 20, 128])
def test_it_is_what_the_paper_says(structure, seed, block_size):
    width = 80
    weight, gram = random(seed, 12, width), correlated(seed, width)

    found = pruned(weight, gram, structure=structure, block_size=block_size).weight

    expected = textbook(weight, damped(gram), sparsity=0.5, structure=structure, block_size=block_size)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-4)


@over_structures
def test_white_inputs_give_magnitude_pruning(structure):
    weight = random(0, 32, 80)

    found = pruned(weight, 7 * torch.eye(80), structure=structure).weight

    assert torch.equal(found, prune_by_magnitude(weight, structure))


def prune_by_magnitude(weight, structure):
    if structure is not None:
        kept, size = structure
        groups = weight.unflatten(1, (-1, size))
        edge = groups.abs().sort(dim=-1, descending=True).values[..., kept - 1 : kept]
        return torch.where(groups.abs() >= edge, groups, 0.0).flatten(1)
    edge = weight.abs().flatten().median()  # of an even number the lower one
    return torch.where(weight.abs() > edge, weight, 0.0)


@pytest.mark.parametrize("structure", [(2, 4), (4, 8), (1, 4), (3, 5)], ids=str)
@pytest.mark.parametrize("block_size", [1, 7, 32, 64, 1000])
def test_block_size_changes_nothing_where_groups_choose(structure, block_size):
    weight, gram = random(0, 24, 160), correlated(0, 160)

    found = pruned(weight, gram, structure=structure, block_size=block_size).weight

    expected = pruned(weight, gram, structure=structure, block_size=128).weight
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block_size", [96, 97, 4096])
def test_one_block_is_one_block_however_large(block_size):
    weight, gram = random(0, 24, 96), correlated(0, 96)

    torch.testing.assert_close(
        pruned(weight, gram, block_size=block_size).weight, pruned(weight, gram, block_size=96).weight
    )


@over_structures
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_the_loss_is_that_of_the_outputs(structure, sparsity):
    weight, gram = random(0, 24, 80), correlated(0, 80)
    solution = pruned(weight, gram, sparsity=sparsity, structure=structure)

    torch.testing.assert_close(
        solution.loss.double(), loss(weight, solution.weight, damped(gram)), rtol=1e-3, atol=1e-3
    )


@given(st.integers(0, 10_000), st.sampled_from(STRUCTURES), st.sampled_from([0.2, 0.5, 0.8]))
@settings(max_examples=60, deadline=None)
def test_it_loses_less_than_dropping_the_same_weights(seed, structure, sparsity):
    """Not a theorem for every row: what makes up for one weight may stand against another.  Of all rows together."""
    weight, gram = random(seed, 64, 40), correlated(seed, 40)

    found = pruned(weight, gram, sparsity=sparsity, structure=structure, block_size=16).weight

    dropped = weight.masked_fill(found == 0, 0)
    assert loss(weight, found, damped(gram)).sum() <= loss(weight, dropped, damped(gram)).sum() * (1 + 1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_nothing_is_better_when_the_first_columns_go(seed):
    """A theorem: where what goes lies left of all that stays, the loss is the least that the mask allows."""
    weight, gram = random(seed, 8, 24), correlated(seed, 24)
    weight[:, :9] = 0
    weight[:, :9] += 1e-6 * random(seed, 8, 9)  # so small that they go
    new = pruned(weight * torch.cat([torch.full((9,), 1e3), torch.ones(15)]), gram, sparsity=9 / 24, block_size=9)
    old = weight * torch.cat([torch.full((9,), 1e3), torch.ones(15)])
    gone = new.weight == 0

    wide = damped(gram)
    for row in range(8):
        if not bool(gone[row, :9].all()) or bool(gone[row, 9:].any()):
            continue
        stays = ~gone[row]
        best = old[row].double() * gone[row]  # E: what goes, and the best that stays can do
        best[stays] = -torch.linalg.solve(wide[stays][:, stays], wide[stays][:, gone[row]] @ best[gone[row]])
        least = (best @ wide) @ best
        torch.testing.assert_close(new.loss[row].double(), least, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("structure", "gone"), [((2, 4), 2), ((1, 4), 3), ((3, 4), 1), ((4, 8), 4), ((16, 32), 16)])
def test_every_group_has_exactly_as_many_zeros_as_asked(structure, gone):
    found = pruned(random(3, 48, 96), correlated(3, 96), structure=structure).weight

    assert (found.unflatten(1, (-1, structure[1])) == 0).sum(-1).unique().tolist() == [gone]


@pytest.mark.parametrize("sparsity", [0.0, 0.111, 0.5, 0.7, 0.999])
@pytest.mark.parametrize("block_size", [16, 33, 128])
def test_every_block_reaches_its_sparsity_to_one_weight(sparsity, block_size):
    found = pruned(random(4, 31, 96), correlated(4, 96), sparsity=sparsity, block_size=block_size).weight

    for part in found.split(block_size, dim=1):
        assert abs(int((part == 0).sum()) - sparsity * part.numel()) <= 1


def test_zeros_of_different_matrices_are_counted_apart():
    weights, gram = [random(i, 24, 64) * 10**i for i in range(3)], correlated(0, 64)
    factor = prepare(gram, dampening_frac=0.01)
    asked = [0.25, 0.5, 0.75]

    together = sparsegpt(weights, factor, sparsities=asked, structure=None, block_size=32, keep_zeros=False)

    for weight, share, one in zip(weights, asked, together, strict=True):
        alone = pruned(weight, gram, sparsity=share, block_size=32)
        assert (one.weight == 0).float().mean() == share
        assert torch.equal(one.weight == 0, alone.weight == 0)
        torch.testing.assert_close(one.weight, alone.weight)
        torch.testing.assert_close(one.loss, alone.loss)


@over_structures
@pytest.mark.parametrize("sparsity", [0.2, 0.5])
def test_zeros_stay_and_count(structure, sparsity):
    weight, gram = random(0, 24, 80), correlated(0, 80)
    weight[random(1, 24, 80) > 0.6] = 0  # a quarter
    before = weight == 0

    found = pruned(weight, gram, sparsity=sparsity, structure=structure, keep_zeros=True).weight

    assert (found[before] == 0).all()
    if structure is None:
        assert abs((found == 0).float().mean() - max(sparsity, before.float().mean())) < 1e-3
    else:
        zeros = (found.unflatten(1, (-1, structure[1])) == 0).sum(-1)
        already = (before.unflatten(1, (-1, structure[1]))).sum(-1)
        assert torch.equal(zeros, already.clamp(min=structure[1] - structure[0]))


def test_without_being_told_zeros_may_come_back():
    weight, gram = random(0, 24, 80), correlated(0, 80)
    weight[:, 1::4] = 0

    assert (pruned(weight, gram, block_size=16).weight[:, 1::4] != 0).any()


@over_structures
def test_nothing_to_drop_changes_nothing(structure):
    weight = random(0, 24, 80)
    if structure is None:
        assert torch.equal(pruned(weight, correlated(0, 80), sparsity=0.0).weight, weight)
    else:
        kept, size = structure
        weight.unflatten(1, (-1, size))[..., kept:] = 0
        found = pruned(weight, correlated(0, 80), structure=structure, keep_zeros=True).weight
        assert torch.equal(found, weight)


@over_structures
def test_rows_in_another_order_are_the_same_rows(structure):
    weight, gram = random(0, 32, 80), correlated(0, 80)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(
        pruned(weight[order], gram, structure=structure).weight, pruned(weight, gram, structure=structure).weight[order]
    )


@over_structures
@pytest.mark.parametrize("factor", [0.125, 64.0])
def test_the_size_of_weights_and_inputs_does_not_matter(structure, factor):
    weight, gram = random(0, 16, 80), correlated(0, 80)
    expected = pruned(weight, gram, structure=structure).weight

    torch.testing.assert_close(pruned(weight * factor, gram, structure=structure).weight, expected * factor)
    torch.testing.assert_close(pruned(weight, gram * factor, structure=structure).weight, expected)


@over_structures
def test_what_nothing_comes_into_goes_first_and_the_smallest_of_it(structure):
    weight, gram = random(0, 16, 80), correlated(0, 80)
    dead = torch.arange(80) % 5 == 2
    gram[dead] = 0
    gram[:, dead] = 0

    found = pruned(weight, gram, sparsity=0.5, structure=structure).weight

    if structure is None:
        assert (found[:, dead] == 0).all()
    assert torch.isfinite(found).all()
    few = pruned(weight, gram, sparsity=0.1).weight
    assert (few == 0).sum() == 128
    assert (few[:, dead] == 0).sum() == 128
    assert few[:, dead].abs()[few[:, dead] != 0].min() >= weight[:, dead].abs()[few[:, dead] == 0].max()


def test_a_single_token_can_be_made_up_for_exactly():
    weight, x = random(0, 16, 80), random(1, 80)
    found = pruned(weight, x[:, None] * x, dampening_frac=1e-4, structure=(2, 4)).weight

    assert ((found @ x - weight @ x).norm() / (weight @ x).norm()) < 0.02


def test_weights_are_not_touched_and_zeros_have_no_sign():
    weight = random(0, 16, 80)
    kept = weight.clone()

    found = pruned(weight, correlated(0, 80)).weight

    assert torch.equal(weight, kept)
    assert not torch.signbit(found[found == 0]).any()


def test_a_matrix_that_cannot_be_factorized_has_no_factor():
    assert prepare(torch.diag(torch.tensor([1.0, 1e20])).flip(0), dampening_frac=0.0) is None
    assert isinstance(prepare(torch.eye(3), dampening_frac=0.0), Factor)
