"""Optimisers whose hyperparameters are 0-d tensors on the device, so that one captured step serves every trial.

Built on functional forms: constructing `torch.optim.AdamW` imports the compiler, 2 to 7 s of a worker's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from hpsearch.finetune.recipe import Recipe


@dataclass(frozen=True)
class Hyper:
    """What a step reads: 0-d float32 tensors, set anew for every trial and, the first three, for every step."""

    learning_rate: Tensor
    mixup: Tensor  # share of each image that stays its own
    cutmix: Tensor  # likewise, of its area
    weight_decay: Tensor
    momentum: Tensor
    label_smoothing: Tensor
    l1: Tensor
    l2_sp: Tensor
    clip_norm: Tensor

    @classmethod
    def on(cls, device: torch.device) -> Hyper:
        """All zero."""
        return cls(*(torch.zeros((), device=device) for _ in fields(cls)))

    def set(self, recipe: Recipe) -> None:
        """Copy a trial's values in place."""
        for field in fields(self):
            getattr(self, field.name).fill_(getattr(recipe, field.name, 1.0))


class Moments:
    """What an optimiser remembers of each parameter: zeros at first; kept by slot, whatever is frozen."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.mean: dict[Tensor, Tensor] = {}  # SGD's momentum buffer
        self.square: dict[Tensor, Tensor] = {}
        self.steps: dict[Tensor, Tensor] = {}

    def of(self, p: Tensor) -> dict[str, Tensor]:
        """The parameter's own, by name."""
        if p not in self.mean:
            self.mean[p] = torch.zeros_like(p)
            if self.kind == "adamw":
                self.square[p], self.steps[p] = torch.zeros_like(p), torch.zeros((), device=p.device)
        return {name: values[p] for name, values in vars(self).items() if name != "kind" and p in values}


class Optimiser:
    """AdamW (Loshchilov and Hutter, 2019), or SGD with Nesterov momentum (Sutskever et al., 2013) and coupled weight decay.

    Biases and normalisation scales (one dimension) are not decayed. `depths` counts the blocks between each parameter and the
    head: its learning rate is multiplied by `layer_decay` to that power (Howard and Ruder, 2018). `anchors` are the
    pretrained weights that L2-SP (Li et al., 2018) pulls towards.
    """

    def __init__(
        self,
        moments: Moments,
        depths: Mapping[nn.Parameter, int],
        hyper: Hyper,
        anchors: Mapping[nn.Parameter, Tensor],
        by_depth: bool = False,
    ) -> None:
        self.moments, self.kind, self.hyper, self.anchors = moments, moments.kind, hyper, anchors
        self.params = list(depths)
        groups: dict[tuple[bool, int], list[nn.Parameter]] = {}
        for p, depth in depths.items():
            groups.setdefault((p.ndim > 1, depth if by_depth else 0), []).append(p)
        self.groups = list(groups.items())
        device = hyper.learning_rate.device
        self.factors = torch.ones(len(self.groups), device=device)
        self.by_depth, self.used = by_depth, 1.0
        self.own = [moments.of(p) for p in self.params]

    def reset(self, layer_decay: float) -> None:
        """As new, for the next trial."""
        for tensor in self.state().values():
            tensor.zero_()
        self.used = layer_decay
        if self.by_depth:
            self.factors.copy_(torch.tensor([layer_decay**depth for (_, depth), _ in self.groups]))

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by the position of their parameter (not copied)."""
        return {f"{name}.{i}": tensor for i, own in enumerate(self.own) for name, tensor in own.items()}

    def of(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A parameter with its two moments (not copied)."""
        return p, self.moments.mean[p], self.moments.square[p]

    def zero_grad(self) -> None:
        """Forget gradients."""
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self, terms: frozenset[str] = frozenset()) -> None:
        """One update from the gradients; a parameter without one is left as it is. `terms`: which of l1, l2_sp, clip_norm apply."""
        self.regularise(terms)
        rates = (self.factors * self.hyper.learning_rate).unbind() if self.by_depth else [self.hyper.learning_rate] * len(self.groups)
        for ((decayed, _), params), rate in zip(self.groups, rates, strict=True):
            live: list[Tensor] = [p for p in params if p.grad is not None]
            if live:
                (self.adamw if self.kind == "adamw" else self.sgd)(live, gradients(live), rate, decayed)

    def regularise(self, terms: frozenset[str]) -> None:
        """Add what penalties contribute to the gradients of weights, then clip the norm of all gradients together."""
        weights: list[Tensor] = [p for p in self.params if p.grad is not None and p.ndim > 1]
        if "l1" in terms and weights:
            torch._foreach_add_(gradients(weights), torch._foreach_mul(torch._foreach_sign(weights), self.hyper.l1))
        pulled = [p for p in self.anchors if p.grad is not None]
        if "l2_sp" in terms and pulled:
            away = [self.hyper.l2_sp * (p - self.anchors[p]) for p in pulled]
            torch._foreach_add_(gradients(pulled), away)
        live: list[Tensor] = [p for p in self.params if p.grad is not None]
        if "clip_norm" in terms and live:
            norm = torch.stack(torch._foreach_norm(gradients(live))).norm()
            torch._foreach_mul_(gradients(live), (self.hyper.clip_norm / (norm + 1e-6)).clamp(max=1))

    def adamw(self, params: list[Tensor], grads: list[Tensor], rate: Tensor, decayed: bool) -> None:
        """Decay, then torch's fused Adam, which takes the rate as a tensor but the decay only as a number."""
        if decayed:
            torch._foreach_mul_(params, 1 - rate * self.hyper.weight_decay)
        adamw(
            params,
            grads,
            [self.moments.mean[p] for p in params],
            [self.moments.square[p] for p in params],
            [],
            [self.moments.steps[p] for p in params],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def sgd(self, params: list[Tensor], grads: list[Tensor], rate: Tensor, decayed: bool) -> None:
        """As torch.optim.SGD(nesterov=True)."""
        if decayed:
            torch._foreach_add_(grads, list(torch._foreach_mul(params, self.hyper.weight_decay)))
        buffers = [self.moments.mean[p] for p in params]
        torch._foreach_mul_(buffers, self.hyper.momentum)
        torch._foreach_add_(buffers, grads)
        ahead = torch._foreach_mul(buffers, self.hyper.momentum)
        torch._foreach_add_(ahead, grads)
        torch._foreach_sub_(params, list(torch._foreach_mul(ahead, rate)))


def gradients(params: Iterable[Tensor]) -> list[Tensor]:
    """Those that there are."""
    return [p.grad for p in params if p.grad is not None]
