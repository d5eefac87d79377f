"""Heads on frozen networks, trained as one batched program: logistic regressions with gradients in closed form.

Trials that train nothing but their head are so small that launching a step costs more than computing it. Here the trials at work take
their steps together, each on its own batch with its own hyperparameters.

Notation: T trials, n images in the largest of their batches, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpsearch.finetune.blocks import FineTuneModel
from hpsearch.finetune.recipe import Recipe

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # AdamW's


def fits(recipe: Recipe, model: FineTuneModel) -> bool:
    """Whether a trial can be trained so: a linear head behind nothing but frozen blocks and dropout, with AdamW, images unmixed."""
    linear = model.cuts.plain and isinstance(model.head, nn.Linear) and model.head.bias is not None
    linear = linear and model.cuts.tensors.get(f"{model.cuts.head}.weight") == len(model.blocks)  # not tied to a frozen one
    usual = recipe.optimizer == "adamw" and not (recipe.mixes or recipe.l1 or recipe.clip_norm)
    return linear and usual and recipe.frozen_layers == len(model.blocks)


@dataclass
class Head:
    """One trial's head with its AdamW state. The bias is the last column: features end with a 1."""

    weight: Tensor  # (K, D + 1)
    mean: Tensor
    square: Tensor
    weight_decay: float
    steps: int = 0


@dataclass
class Request:
    """A step to take: dropped-out features with their 1, targets with class weights in them, the batch's share of the sum."""

    head: Head
    x: Tensor  # (n, D + 1)
    target: Tensor  # (n, K)
    scale: Tensor  # 0-d: 1 / sum of the batch's class weights
    learning_rate: float
    loss: Tensor | None = field(default=None)  # 0-d, once it is taken


class Heads:
    """The heads in training on one device."""

    def __init__(self) -> None:
        self.waiting: list[Request] = []

    def request(self, request: Request) -> Request:
        """Have a step taken at the next flush."""
        self.waiting.append(request)
        return request

    @torch.no_grad()
    def flush(self) -> None:
        """Take the steps that were requested: one by itself, or several in one."""
        waiting, self.waiting = self.waiting, []
        if len(waiting) == 1:
            (one,) = waiting
            head = one.head
            head.steps += 1
            rate, first, second = schedule(one)
            one.loss = step(one.x, one.target, one.scale, head.weight, head.mean, head.square, rate, head.weight_decay, first, second)
        elif waiting:
            together(waiting)


def schedule(request: Request) -> tuple[float, float, float]:
    """Learning rate and the corrections of Adam's two moments."""
    return request.learning_rate, 1 - BETA1**request.head.steps, 1 - BETA2**request.head.steps


def together(requests: list[Request]) -> None:
    """One step for each of several heads; smaller batches are filled up with images of no weight."""
    most = max(len(request.x) for request in requests)
    heads = [request.head for request in requests]
    for head in heads:
        head.steps += 1
    x, target = (torch.stack([F.pad(getattr(r, name), (0, 0, 0, most - len(r.x))) for r in requests]) for name in ("x", "target"))
    scale = torch.stack([request.scale for request in requests]).view(-1, 1, 1)
    own = [(*schedule(request), request.head.weight_decay) for request in requests]
    values = torch.tensor(own).T.contiguous()
    if x.is_cuda:  # from pinned memory: the host need not wait
        values = values.pin_memory().to(x.device, non_blocking=True)
    rate, first, second, decay = values.view(4, -1, 1, 1)
    weight, mean, square = (torch.stack([getattr(head, name) for head in heads]) for name in ("weight", "mean", "square"))
    losses = step(x, target, scale, weight, mean, square, rate, decay, first, second)
    for i, request in enumerate(requests):
        request.loss = losses[i]
        for name, values in (("weight", weight), ("mean", mean), ("square", square)):
            getattr(request.head, name).copy_(values[i])


def step(
    x: Tensor,
    target: Tensor,
    scale: Tensor,
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    rate: Tensor | float,
    decay: Tensor | float,
    first: Tensor | float,
    second: Tensor | float,
) -> Tensor:
    """AdamW on the cross-entropy of one head, or of T with all shapes (T, ...); changes weight and moments in place.

    The gradient at the logits is p sum(target) - target. Returns the loss before the step, 0-d or (T,).
    """
    log_p = F.log_softmax(x @ weight.mT, dim=-1)
    loss = -(target * log_p).sum((-1, -2)) * (scale.flatten() if x.ndim == 3 else scale)
    pull = (log_p.exp() * target.sum(-1, keepdim=True) - target) * scale
    gradient = pull.mT @ x
    mean.lerp_(gradient, 1 - BETA1)
    square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    weight[..., :-1].mul_(1 - rate * decay)  # biases are not decayed
    weight.sub_((mean / (square / second).sqrt().add_(EPS)).mul_(rate / first))
    return loss
