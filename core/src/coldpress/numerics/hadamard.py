"""Hadamard matrices: entries +1 and -1, rows orthogonal, H H^T = n I; of every order that these constructions reach.

    Sylvester   n = 2^k                                     H_2n = [[H, H], [H, -H]]
    Paley I     n = q + 1, q a prime power, 3 modulo 4       I + S, S skew, made of the Jacobsthal matrix of GF(q)
    Paley II    n = 2 (q + 1), q a prime power, 1 modulo 4   C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]]
    Kronecker   n = a b                                     H_a x H_b

The first row of each is ones.  A product with a matrix of order n costs n (a + b + ...), by its factors a, b, ...

Legend: `n` order, `q` prime power, `p` prime, `k` degree.
"""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from coldpress.errors import NumericsError

_LARGEST_BASE = 1024  # order of a matrix that is no product of smaller ones
_LARGEST_FACTOR = 64  # to which powers of two are multiplied


def hadamard_matrix(n: int) -> Tensor:
    """The matrix of order n, [n, n] int8.

    Raises:
        NumericsError: the constructions reach no matrix of this order.
    """
    matrix = torch.ones(1, 1, dtype=torch.int8)
    for order in hadamard_orders(n):
        matrix = torch.kron(matrix, _factor(order))
    return matrix


@lru_cache(maxsize=1024)
def hadamard_orders(n: int) -> tuple[int, ...]:
    """Orders of the Kronecker factors of the matrix of order n, the cheapest that there are.

    Raises:
        NumericsError: the constructions reach no matrix of this order; says which block sizes would do.
    """
    found = _orders(n)
    if found is None:
        blocks = ", ".join(map(str, hadamard_block_sizes(n)[:4]))
        advice = f"its columns can be rotated in blocks of {blocks}" if blocks else "no blocks would do either"
        raise NumericsError(f"no Hadamard matrix of order {n} is known here; {advice}")
    return found


def hadamard_block_sizes(width: int) -> list[int]:
    """The orders, from 2 on, of blocks that divide a width and can be rotated each by itself, the largest first."""
    return [n for n in range(width, 1, -1) if width % n == 0 and _orders(n) is not None]


def apply_hadamard(x: Tensor, n: int) -> Tensor:
    """The product of every n columns with the normalized matrix of order n, x (I x H) / sqrt(n), factor by factor.

    Args:
        x: [..., I], floating point, I a multiple of n.
        n: order.

    Returns:
        [..., I], in the dtype of x.
    """
    return _apply(x, hadamard_orders(n), transposed=False)


def apply_hadamard_transposed(x: Tensor, n: int) -> Tensor:
    """The inverse of `apply_hadamard`, x (I x H^T) / sqrt(n)."""
    return _apply(x, hadamard_orders(n), transposed=True)


def _apply(x: Tensor, orders: tuple[int, ...], *, transposed: bool) -> Tensor:
    shape = x.shape
    for number, order in enumerate(orders):
        rest = 1
        for other in orders[number + 1 :]:
            rest *= other
        matrix = _factor(order).to(x) / order**0.5  # [order, order]
        rows = x.reshape(-1, order, rest).transpose(1, 2).reshape(-1, order)  # one product of many rows, not many
        x = (rows @ (matrix.t() if transposed else matrix)).view(-1, rest, order).transpose(1, 2)
    return x.reshape(shape)


@lru_cache(maxsize=4096)
def _orders(n: int) -> tuple[int, ...] | None:
    if n < 1 or (n > 2 and n % 4):
        return None
    odd = n // (n & -n)
    if odd == 1:
        return _powers(n)
    tried = [(base, *_powers(n // base)) for base in _bases(n, odd) if _is_paley(base)]
    for base in range(12, int(n**0.5) + 1, 4):  # products of two that are no power of two
        if n % base == 0 and _is_paley(base):
            rest = _orders(n // base)
            if rest is not None:
                tried.append((base, *rest))
    return min(tried, key=lambda orders: (sum(orders), orders), default=None)


def _bases(n: int, odd: int) -> Iterator[int]:
    base = 4 * odd
    while base <= min(n, _LARGEST_BASE):
        if n % base == 0:
            yield base
        base *= 2


def _powers(n: int) -> tuple[int, ...]:
    """A power of two as a product of factors that are about as large as each other."""
    bits = n.bit_length() - 1
    count = -(-bits // (_LARGEST_FACTOR.bit_length() - 1))
    return tuple(2 ** (bits // count + (i < bits % count)) for i in range(count))


def _is_paley(n: int) -> bool:
    return (_prime_power(n - 1) is not None and n % 4 == 0) or (
        n % 4 == 0 and n // 2 % 4 == 2 and _prime_power(n // 2 - 1) is not None
    )


@lru_cache(maxsize=256)
def _factor(n: int) -> Tensor:
    """A matrix that is no product, or a power of two, with a first row of ones, [n, n] int8."""
    if n & (n - 1) == 0:
        matrix = torch.ones(1, 1, dtype=torch.int8)
        for _ in range(n.bit_length() - 1):
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return matrix
    matrix = _paley_one(n - 1) if _prime_power(n - 1) is not None else _paley_two(n // 2 - 1)
    return matrix * matrix[:1]


def _paley_one(q: int) -> Tensor:
    skew = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = _jacobsthal(q)
    return skew + torch.eye(q + 1, dtype=torch.int8)


def _paley_two(q: int) -> Tensor:
    conference = torch.ones(q + 1, q + 1, dtype=torch.int8)
    conference[0, 0] = 0
    conference[1:, 1:] = _jacobsthal(q)
    inner = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    diagonal = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(conference, inner) + torch.kron(torch.eye(q + 1, dtype=torch.int8), diagonal)


def _jacobsthal(q: int) -> Tensor:
    """1 where the difference of two elements of GF(q) is a square, -1 where it is none, 0 on the diagonal, [q, q]."""
    power = _prime_power(q)
    assert power is not None
    p, k = power
    elements = list(itertools.product(range(p), repeat=k))  # coefficients of polynomials over GF(p)
    digits = torch.tensor(elements)  # [q, k]
    place = torch.tensor([p ** (k - 1 - i) for i in range(k)])
    character = torch.full((q,), -1, dtype=torch.int8)
    character[[elements.index(square) for square in _squares(p, k)]] = 1
    character[0] = 0
    differences = (digits[:, None] - digits[None]).remainder(p)  # [q, q, k]
    return character[(differences * place).sum(-1)]


def _squares(p: int, k: int) -> set[tuple[int, ...]]:
    """The squares of GF(p^k) other than 0.

    A ring of polynomials modulo another one is a field where half of its elements but 0 are squares, and none is 0.
    """
    elements = list(itertools.product(range(p), repeat=k))
    for modulus in elements:
        squares = {_square(element, modulus, p) for element in elements[1:]}
        if len(squares) == (p**k - 1) // 2 and elements[0] not in squares:
            return squares
    raise AssertionError(f"no irreducible polynomial of degree {k} over GF({p})")


def _square(element: tuple[int, ...], modulus: tuple[int, ...], p: int) -> tuple[int, ...]:
    """An element times itself, with x^k = -modulus; coefficients of the highest power first."""
    k = len(element)
    product = [0] * (2 * k - 1)
    for i, a in enumerate(element):
        for j, b in enumerate(element):
            product[i + j] += a * b
    for i in range(k - 1):
        for j, c in enumerate(modulus):
            product[i + 1 + j] -= product[i] * c
    return tuple(value % p for value in product[k - 1 :])


@lru_cache(maxsize=4096)
def _prime_power(q: int) -> tuple[int, int] | None:
    """An odd q as (p, k) with q = p^k and p prime; None where it is no such power."""
    if q < 3 or q % 2 == 0:
        return None
    p = next((d for d in range(3, int(q**0.5) + 1, 2) if q % d == 0), q)
    k, rest = 0, q
    while rest % p == 0:
        rest //= p
        k += 1
    return (p, k) if rest == 1 else None
