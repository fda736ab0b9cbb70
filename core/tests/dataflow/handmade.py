"""Small blocks written by hand, one idea each."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coldpress.dataflow import Dataflow, Pair, find_pairs
from coldpress.dataflow.call import Call

WIDTH, TOKENS = 16, 7


class RMSNorm(nn.Module):
    """`(offset + w) x / rms(x)`, computed in float32 as transformers does."""

    def __init__(self, width: int = WIDTH, offset: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (normed * (self.offset + self.weight.float())).to(x.dtype)


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is [I, O]."""

    def __init__(self, width_out: int, width_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_in, width_out) * 0.1)
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return out.view(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Causal attention with grouped keys and values, fused or not."""

    def __init__(self, heads: int = 4, groups: int = 2, dim: int = 4, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.groups, self.dim, self.fused = heads, groups, dim, fused
        if fused:
            self.qkv_proj = nn.Linear(WIDTH, (heads + 2 * groups) * dim)
        else:
            self.q_proj = nn.Linear(WIDTH, heads * dim)
            self.k_proj = nn.Linear(WIDTH, groups * dim)
            self.v_proj = nn.Linear(WIDTH, groups * dim)
        self.o_proj = nn.Linear(heads * dim, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [self.heads * self.dim, self.groups * self.dim, self.groups * self.dim]
        parts = self.qkv_proj(x).split(sizes, -1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (p.unflatten(-1, (-1, self.dim)).transpose(1, 2) for p in parts)
        k, v = (p.repeat_interleave(self.heads // self.groups, 1) for p in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class GatedMLP(nn.Module):
    """Gate and up apart, or in one layer."""

    def __init__(self, fused: bool = False, limit: float | None = None, inner: int = 24) -> None:
        super().__init__()
        self.fused, self.limit = fused, limit
        if fused:
            self.gate_up_proj = nn.Linear(WIDTH, 2 * inner, bias=False)
        else:
            self.gate_proj = nn.Linear(WIDTH, inner, bias=False)
            self.up_proj = nn.Linear(WIDTH, inner, bias=False)
        self.down_proj = nn.Linear(inner, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1) if self.fused else (self.gate_proj(x), self.up_proj(x))
        up = up if self.limit is None else up.clamp(-self.limit, self.limit)
        return self.down_proj(F.silu(gate) * up)


class MLP(nn.Module):
    """Two layers around an activation."""

    def __init__(self, activation: Callable[[Tensor], Tensor], linear: Callable[[int, int], nn.Module] | None = None):
        super().__init__()
        self.fc1 = linear(24, WIDTH) if linear else nn.Linear(WIDTH, 24)
        self.fc2 = linear(WIDTH, 24) if linear else nn.Linear(24, WIDTH)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class PreNorm(nn.Module):
    """x + inner(norm(x)), or norm(x) + inner(norm(x)) where the residual is taken behind the norm."""

    def __init__(self, norm: nn.Module, inner: nn.Module, residual_behind_norm: bool = False) -> None:
        super().__init__()
        self.norm, self.inner, self.behind = norm, inner, residual_behind_norm

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return (normed if self.behind else x) + self.inner(normed)


class Parallel(nn.Module):
    """Attention and MLP read one norm, as in Cohere and GPT-J."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(WIDTH), Attention(), GatedMLP()

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.attn(normed) + self.mlp(normed)


class Experts(nn.Module):
    """Every token to one of four gated MLPs; the router's weight is bare unless it is frozen into a buffer.

    If it is `dense`, every expert runs on every token, times its score or 0.
    """

    def __init__(
        self, experts: int = 4, router: str = "parameter", *, score_input: bool = False, dense: bool = False
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList([GatedMLP() for _ in range(experts)])
        self.score_input, self.dense = score_input, dense
        weight = torch.randn(experts, WIDTH)
        if router == "parameter":
            self.router = nn.Parameter(weight)
        else:
            self.register_buffer("router", weight)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        scores, choice = F.linear(flat, self.router).sigmoid().max(-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            if self.dense:
                out = out + expert(flat * (scores * (choice == i))[:, None])
                continue
            (rows,) = torch.where(choice == i)
            if len(rows):
                score = scores[rows, None]
                out[rows] = expert(flat[rows] * score) if self.score_input else expert(flat[rows]) * score
        return out.view_as(x)


def call(rows: int = 2, tokens: int = TOKENS) -> Call:
    """Random hidden states, [rows, tokens, WIDTH]."""
    return Call((torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(3)),), {})


def pairs(block: nn.Module, given: Call | None = None) -> dict[str, Pair]:
    """The pairs of a block by their producers."""
    return {p.producer: p for p in flow(block, given).pairs}


def flow(block: nn.Module, given: Call | None = None) -> Dataflow:
    """What probing says about a block."""
    return find_pairs(block.eval(), given or call())
