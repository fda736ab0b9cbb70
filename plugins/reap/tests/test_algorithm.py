"""Saliencies and choices, against what the definitions say token by token."""

import pytest
import torch

from coldpress_reap.algorithm import CRITERIA, count_kept, gate_scales, kept_experts, masses, saliency, sums


def table(tokens=40, experts=6, top_k=2, seed=0):
    """Gates and norms of random tokens, [T, E, 2]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(tokens, experts, generator=generator).argsort(dim=1)[:, :top_k]
    found = torch.tensor((0.0, -1.0)).repeat(tokens, experts, 1)
    for token in range(tokens):
        for expert in chosen[token].tolist():
            found[token, expert] = torch.rand(2, generator=generator)
    return found


def by_definition(table, criterion):
    scores = []
    for expert in range(table.shape[1]):
        pairs = [(float(g), float(n)) for g, n in table[:, expert] if n >= 0]
        worth = {"reap": lambda g, n: g * n, "man": lambda g, n: n, "msan": lambda g, n: n * n}[criterion]
        scores.append(sum(worth(g, n) for g, n in pairs) / len(pairs) if pairs else 0.0)
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_saliency_is_a_mean_over_the_tokens_that_were_sent(criterion):
    seen = table()

    torch.testing.assert_close(saliency(sums(seen), criterion), by_definition(seen, criterion))


def test_parts_add_up_to_the_whole():
    seen = table()

    torch.testing.assert_close(sums(seen[:7]) + sums(seen[7:]), sums(seen))


def test_an_expert_that_no_token_reaches_is_worth_nothing():
    seen = table()
    seen[:, 3] = torch.tensor((0.0, -1.0))

    assert saliency(sums(seen), "reap")[3] == 0
    assert 3 not in kept_experts(saliency(sums(seen), "reap"), 5)


def test_a_token_whose_gate_is_zero_was_sent_all_the_same():
    seen = torch.tensor([[[0.0, 2.0]], [[1.0, 2.0]]])  # [2, 1, 2]

    assert saliency(sums(seen), "reap").item() == 1.0
    assert saliency(sums(seen), "man").item() == 2.0


@pytest.mark.parametrize(
    ("scores", "keep", "groups", "kept"),
    [
        ([4.0, 1.0, 3.0, 2.0], 2, 1, [0, 2]),
        ([1.0, 1.0, 1.0, 1.0], 2, 1, [0, 1]),
        ([9.0, 8.0, 1.0, 2.0], 2, 2, [0, 3]),
        ([1.0, 2.0, 9.0, 8.0, 7.0, 3.0], 4, 2, [1, 2, 3, 4]),
    ],
)
def test_the_best_of_each_group_stay_in_their_order(scores, keep, groups, kept):
    assert kept_experts(torch.tensor(scores), keep, groups=groups) == kept


@pytest.mark.parametrize(
    ("experts", "sparsity", "groups", "left"), [(8, 0.5, 1, 4), (7, 0.5, 1, 4), (64, 0.25, 8, 48), (16, 0.3, 4, 12)]
)
def test_a_share_is_rounded_down_and_divided_among_groups(experts, sparsity, groups, left):
    assert count_kept(experts, sparsity, groups) == left


def test_a_scale_is_the_mean_of_what_gates_lose_weighted_by_them():
    generator = torch.Generator().manual_seed(0)
    every = torch.rand(50, 6, generator=generator)
    sent = torch.where(every >= every.topk(2, dim=1).values[:, -1:], every, 0)  # [T, E]
    shares, kept = every / every.sum(1, keepdim=True), [0, 2, 5]
    left = shares[:, kept].sum(1)  # [T], 1 - m

    found = gate_scales(masses(sent, every), kept)

    expected = [float((sent[:, one] * left).sum() / sent[:, one].sum()) for one in kept]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_an_expert_that_nothing_is_sent_to_is_scaled_as_the_others_are():
    mass = torch.tensor([[3.0, 1.0, 0.0], [1.0, 3.0, 4.0], [0.0, 0.0, 0.0]], dtype=torch.float64)

    first, unreached = gate_scales(mass, [0, 2])

    assert first == 0.75
    assert unreached == 0.75
