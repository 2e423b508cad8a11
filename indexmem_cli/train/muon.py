"""Muon: momentum whose update is orthogonalised, for the weight matrices of the blocks."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# Quintic whose iteration drives every singular value into about [0.7, 1.2].
# Source: KellerJordan/Muon.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """Push the singular values of each matrix towards one; shape [N, rows, columns].

    The iteration runs in bf16, which its loose target forgives; the result is fp32.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised in one batch for all matrices of one shape.

    The step is scaled by sqrt(max(1, rows / columns)), so that one learning rate serves all.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Apply one update to every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append(param)
            for params in by_shape.values():
                self._step_shape(params, group["lr"], group["momentum"], group["weight_decay"])

    def _step_shape(self, params: list[Tensor], lr: float, momentum: float, decay: float) -> None:
        directions = []
        for param in params:
            state = self.state[param]
            if not state:
                state["momentum"] = torch.zeros_like(param)
            state["momentum"].lerp_(param.grad, 1 - momentum)
            directions.append(param.grad.lerp(state["momentum"], momentum))
        rows, columns = params[0].shape
        scale = lr * max(1.0, rows / columns) ** 0.5
        for param, update in zip(params, orthogonalise(torch.stack(directions)), strict=True):
            param.mul_(1 - lr * decay).add_(update, alpha=-scale)
