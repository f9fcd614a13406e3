"""Gradient rules: from named losses to one update, without knowing what the losses are.

:class:`SumGradients` is the plain rule, :class:`GradMitigator` that of GCL (Wu et al. 2023, Eqs.
2-4; the closed form equals Gradient Vaccine, Wang et al. 2020). Every parameter tensor is treated
on its own. A modified gradient is a combination of the original ones, so the rule works on the T
small Gram matrices of the M gradients of each tensor and touches the gradients themselves twice
only.

T tensors, M losses, N parameters.  Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

_LIMIT = 1 - 1e-6
"""Largest |cosine| in use: the angle to aim at must not be zero."""


class SumGradients:
    """The gradient of the sum of all losses, or of their average (GCL Eq. 2)."""

    def __init__(self, average: bool = False) -> None:
        self.average = average

    def __call__(
        self,
        losses: dict[str, Tensor],
        shared: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        """Set ``.grad`` of all parameters; None where no loss depends on one."""
        total = torch.stack(list(losses.values())).sum() / (len(losses) if self.average else 1)
        parameters = [*shared, *others]
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
        used, sizes, flat = [], [], []
        for parameter, gradient in zip(parameters, grads, strict=True):
            if gradient is not None:
                used.append(parameter)
                sizes.append(parameter.numel())
                flat.append(gradient.flatten())
        _clear(parameters)
        if used:
            _assign(used, reduce(torch.cat(flat)).split(sizes))

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to restore."""

    def diagnostics(self) -> dict[str, Tensor]:
        """Nothing is measured."""
        return {}


class GradMitigator:
    """One update from M losses: shared tensors by :func:`mitigate`, the others by the plain
    average.

    With a single loss it is the plain gradient, bit for bit. The target cosines are kept per
    ordered pair of losses and per tensor, start at 0 and follow Eq. 4.

    Args:
        beta: weight of the new cosine in the target's moving average, in [0, 1] (Eq. 4).
        seed: of the random order of pairs; the same on all processes.
    """

    def __init__(self, beta: float = 0.5, seed: int = 0) -> None:
        self.beta = beta
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._target: Tensor | None = None
        self._measured: dict[str, Tensor] = {}

    def __call__(
        self,
        losses: dict[str, Tensor],
        shared: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        """Set ``.grad`` of all parameters; None where no loss depends on one.

        Raises:
            ValueError: the restored state belongs to other losses or another encoder.
        """
        if len(losses) == 1:
            return SumGradients()(losses, shared, others, reduce)
        parameters = [*shared, *others]
        matrix, used = gradient_matrix(list(losses.values()), parameters)
        blocks = reduce(matrix).split([p.numel() for p in parameters], dim=1)
        gram = torch.stack([gram_matrix(block) for block in blocks[: len(shared)]])
        target = self._target_for(gram)
        coefficients, self._target = mitigate(gram, target, self._pairs(len(losses)), self.beta)
        self._measured = measure(gram, target, tuple(losses))
        weights = gram.new_full((len(parameters), len(losses)), 1 / len(losses))
        weights[: len(shared)] = coefficients.mean(1)
        _clear(parameters)
        for parameter, is_used, weight, block in zip(
            parameters, used, weights, blocks, strict=True
        ):
            if is_used:
                _assign([parameter], [(weight.unsqueeze(1) * block).sum(0)])

    def state_dict(self) -> dict[str, Tensor]:
        """Target cosines ``[T, M, M]``, once there are any, and the state of the pair order's
        generator.
        """
        state = {"generator": self._generator.get_state()}
        return state if self._target is None else {**state, "target": self._target}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._generator.set_state(state["generator"].cpu())
        self._target = state.get("target")

    def diagnostics(self) -> dict[str, Tensor]:
        """What :func:`measure` found at the last update."""
        return dict(self._measured)

    def _target_for(self, gram: Tensor) -> Tensor:
        if self._target is None:
            return torch.zeros_like(gram)
        if self._target.shape != gram.shape:
            shapes = tuple(self._target.shape), tuple(gram.shape)
            raise ValueError(
                f"target cosines of shape {shapes[0]} do not fit {shapes[1]} of the gradients"
            )
        return self._target.to(gram)

    def _pairs(self, count: int) -> list[tuple[int, int]]:
        """All ordered pairs, the partners j of each i in random order."""
        pairs = []
        for i in range(count):
            order = torch.randperm(count, generator=self._generator, device="cpu").tolist()
            pairs += [(i, j) for j in order if i != j]
        return pairs


def gradient_matrix(
    losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, list[bool]]:
    """Gradients of M losses in one matrix ``[M, N]``, and which parameters any loss depends on."""
    rows, used = [], [False] * len(parameters)
    for m, loss in enumerate(losses, 1):
        grads: tuple[Tensor | None, ...] = torch.autograd.grad(
            loss, parameters, retain_graph=m < len(losses), allow_unused=True
        )
        row = []
        for index, (parameter, gradient) in enumerate(zip(parameters, grads, strict=True)):
            if gradient is None:
                gradient = torch.zeros_like(parameter)
            else:
                used[index] = True
            row.append(gradient.flatten())
        rows.append(torch.cat(row))
    return torch.stack(rows), used


def gram_matrix(gradients: Tensor) -> Tensor:
    """Inner products ``[M, M]`` of the rows of ``[M, n]``.

    By products and sums rather than a matrix product, which TF32 or autocast would round to 10
    bits.
    """
    return torch.stack([(gradients * row).sum(1) for row in gradients])


def mitigate(
    gram: Tensor, target: Tensor, pairs: Iterable[tuple[int, int]], beta: float
) -> tuple[Tensor, Tensor]:
    """GradMitigator, GCL Eqs. 3-4: let each gradient's cosine with every other reach the pair's
    target.

    For the ordered pair (i, j), with the running g_i and the original g_j, phi = cos(g_i, g_j):
    where phi < phi_T, ``g_i <- g_i + a g_j`` with a from :func:`mitigation_weight`; then, whether
    or not it acted, ``phi_T <- (1 - beta) phi_T + beta phi``. A pair with a zero or an infinite
    gradient is left alone.

    Args:
        gram: inner products of the original gradients per tensor, ``[T, M, M]``.
        target: phi_T of each tensor and ordered pair, ``[T, M, M]``; the diagonal is unused.
        pairs: the ordered pairs in the order of their treatment.
        beta: in [0, 1].

    Returns:
        coefficients ``[T, M, M]``, the modified gradient i being ``sum_j coefficients[:, i, j]
        g_j``, and the new target ``[T, M, M]``.
    """
    count = gram.shape[1]
    coefficients = torch.eye(count, dtype=gram.dtype, device=gram.device).repeat(len(gram), 1, 1)
    target = target.clone()
    length = gram.diagonal(dim1=1, dim2=2).sqrt()  # (T, M)
    for i, j in pairs:
        phi, size, usable = _cosine(coefficients[:, i], gram, length, j)
        goal = target[:, i, j].clamp(-_LIMIT, _LIMIT)
        weight = mitigation_weight(phi, goal, size, length[:, j])
        coefficients[:, i, j] += torch.where(usable & (phi < goal), weight, 0.0)
        target[:, i, j] = torch.where(usable, torch.lerp(goal, phi, beta), goal)
    return coefficients, target


def _cosine(own: Tensor, gram: Tensor, length: Tensor, j: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine ``[T]`` of the combinations ``own [T, M]`` of gradients with gradient j, their size,
    and whether it has a meaning: neither gradient is zero, cancelled to rounding error, or
    infinite.
    """
    limits = torch.finfo(gram.dtype)
    squared = (own.unsqueeze(2) * own.unsqueeze(1) * gram).sum((1, 2))
    uncancelled = (own.abs() * length).sum(1)
    size = squared.clamp_min(limits.tiny).sqrt()
    dot = (own * gram[:, :, j]).sum(1)
    phi = (dot / (size * length[:, j]).clamp_min(limits.tiny)).clamp(-_LIMIT, _LIMIT)
    usable = (length[:, j] > 0) & (squared > limits.eps * uncancelled.square()) & phi.isfinite()
    return phi, size, usable


def mitigation_weight(phi: Tensor, goal: Tensor, size: Tensor, other: Tensor) -> Tensor:
    """Weight a of GCL Eq. 3 by the law of sines, so that ``cos(g_i + a g_j, g_j) = goal``.

    ``a = |g_i| (goal sqrt(1 - phi^2) - phi sqrt(1 - goal^2)) / (|g_j| sqrt(1 - goal^2))``

    Args:
        phi: cosine of ``g_i`` and ``g_j``, above -1 and below 1.
        goal: target cosine, likewise.
        size: length of ``g_i``.
        other: length of ``g_j``.
    """
    sine, goal_sine = (1 - phi.square()).sqrt(), (1 - goal.square()).sqrt()
    return size * (goal * sine - phi * goal_sine) / (other * goal_sine)


def measure(gram: Tensor, target: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """How the original gradients relate, averaged over tensors and ordered pairs without zero
    gradients.

    The shares follow the paper's Fig. 3, whose formulas are lost: `conflicting` is a negative
    cosine, `slightly` one from 0 up to the target, `non` the rest; they sum to 1.

    Returns:
        0-d tensors: non_conflicting, slightly_conflicting, conflicting, cosine, target_cosine, and
        cosine/A-B for every pair of losses.
    """
    length = gram.diagonal(dim1=1, dim2=2).sqrt()
    product = length.unsqueeze(2) * length.unsqueeze(1)
    different = ~torch.eye(len(names), dtype=torch.bool, device=gram.device)
    usable = ((product > 0) & different).to(gram.dtype)
    cosine = gram / product.clamp_min(torch.finfo(gram.dtype).tiny)
    slightly = (cosine >= 0) & (cosine < target)

    def mean(x: Tensor) -> Tensor:
        return (x * usable).sum() / usable.sum().clamp_min(1)

    measured = {
        "non_conflicting": mean((cosine >= 0) & ~slightly),
        "slightly_conflicting": mean(slightly),
        "conflicting": mean(cosine < 0),
        "cosine": mean(cosine),
        "target_cosine": mean(target),
    }
    per_pair = (cosine * usable).sum(0) / usable.sum(0).clamp_min(1)
    for i, first in enumerate(names):
        for j in range(i + 1, len(names)):
            measured[f"cosine/{first}-{names[j]}"] = per_pair[i, j]
    return measured


def _clear(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _assign(parameters: Iterable[nn.Parameter], gradients: Iterable[Tensor]) -> None:
    """Set gradients from flat ones, in each parameter's own memory layout."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter))
