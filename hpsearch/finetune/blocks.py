"""A network as blocks with dropout on the input of its head: `FineTuneModel`, and the means to renew a head.

Notation: N images in a batch, C channels, K classes, D features; "k frozen layers" freezes blocks[0..k-1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hpsearch.finetune.cuts import Block, Cuts


class Dropout(nn.Module):
    """Dropout whose rate is a tensor, which can change without capturing a step anew."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Zero each element with probability `rate` and rescale, when training; shape kept."""
        if not self.training:
            return x
        keep = torch.rand(x.shape, device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class FineTuneModel(nn.Module):
    """A network cut into blocks, with dropout on the input of its head.

    `cacheable` is False when the network could not be traced: `prefix` then does nothing, `suffix` does everything, and
    blocks are frozen all the same; `reason` says why. Its net's state_dict keeps the names of the network's maker.
    """

    def __init__(self, net: nn.Module, found: Cuts, reason: str = "") -> None:
        super().__init__()
        self.net = net
        self.dropout = Dropout()
        self.cuts = found
        self.blocks: tuple[Block, ...] = found.blocks
        self.reason = reason
        self.note = ""  # what a person should know of it
        saved = net.state_dict().keys()
        self.loose = {name: buffer.clone() for name, buffer in net.named_buffers() if name not in saved}  # not in its state
        if not self.cacheable:
            self.head.register_forward_pre_hook(self.drop_input)  # a method: a deep copy's hook is its own

    def drop_input(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Dropout on what the head is given."""
        del head
        return (self.dropout(inputs[0]), *inputs[1:])

    @property
    def cacheable(self) -> bool:
        """Whether the activation after frozen blocks can be computed apart and kept."""
        return self.cuts.tail is not None

    @property
    def head(self) -> nn.Module:
        """The new last layer, inside `net`."""
        return self.net.get_submodule(self.cuts.head)

    def prefix(self, x: Tensor, k: int, start: int = 0) -> Tensor:
        """From the activation behind `start` blocks, the image (N, C, H, W) for 0, to that behind k, images first; x without cuts."""
        for run in self.cuts.runs[start:k]:
            x = run(self.net, x)
        return x

    def suffix(self, x: Tensor, k: int) -> Tensor:
        """From the activation at the cut, which is not changed, to logits (N, K)."""
        if self.cuts.tail is None:
            logits: Tensor = self.net(x)
            return logits
        for run in self.cuts.runs[k:]:
            x = run(self.net, x)
        return self.cuts.tail(self.net, self.dropout(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, K)."""
        return self.suffix(x, 0)

    def features(self, x: Tensor) -> Tensor:
        """(N, D) input of the head in eval mode, without gradients; maps (N, D, H, W) and tokens (N, S, D) are averaged."""
        if not self.cuts.called:
            with eval_mode(self), torch.no_grad():
                return flat(self.prefix(x, len(self.blocks)))
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with eval_mode(self), torch.no_grad():
                self(x)
        finally:
            hook.remove()
        return flat(seen[-1])

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy tensors with the names of net.state_dict() back into place; a part of them will do."""
        restore(self.net, state)
        for name, buffer in self.loose.items():  # what the network keeps to itself starts anew too
            self.net.get_buffer(name).copy_(buffer)

    def freeze(self, k: int) -> list[nn.Parameter]:
        """Freeze the first k blocks and put the rest in training mode; returns the trainable parameters, each once.

        Frozen blocks are in eval mode too: otherwise BatchNorm statistics drift and the "frozen" part changes. What the
        network never uses is frozen for good.
        """
        self.dropout.train()
        self.training = True
        for name, module in self.net.named_modules():
            module.training = self.cuts.modules.get(name, -1) >= k
        for name, p in self.net.named_parameters():
            p.requires_grad_(self.cuts.tensors.get(name, -1) >= k)
        return [p for p in self.net.parameters() if p.requires_grad]

    def frozen(self) -> int:
        """How many blocks are frozen, read back from the parameters."""
        live = [self.cuts.tensors[name] for name, p in self.net.named_parameters() if p.requires_grad and name in self.cuts.tensors]
        return min(live, default=len(self.blocks))

    def trainable_state(self, k: int) -> dict[str, Tensor]:
        """Parameters and buffers outside the frozen blocks, by their names in net.state_dict() (not copied)."""
        return {name: t for name, t in self.net.state_dict().items() if self.cuts.tensors.get(name, -1) >= k}


def restore(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network by name. Not load_state_dict: MNASNet's wants a version that a plain dict does not have."""
    own = net.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Everything in eval mode for a while."""
    before = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


def flat(x: Tensor) -> Tensor:
    """(N, D), averaged over the positions of maps (N, D, H, W) or tokens (N, S, D)."""
    return x.mean(dim=(2, 3)) if x.ndim == 4 else x.mean(dim=1) if x.ndim == 3 else x.flatten(1)


def renew(net: nn.Module, name: str, classes: int) -> None:
    """Replace the head `name` by a newly drawn layer of its kind for `classes`."""
    old = net.get_submodule(name)
    if isinstance(old, nn.Conv2d):
        new: nn.Module = nn.Conv2d(
            old.in_channels,
            classes,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            bias=old.bias is not None,
            device=old.weight.device,
        )
    else:
        assert isinstance(old, nn.Linear)
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None, device=old.weight.device)
    put(net, name, new)


def drop(net: nn.Module, name: str) -> None:
    """Take the dropout `name` out, "" for none: the sampled one takes its place."""
    if name:
        put(net, name, nn.Identity())


def put(net: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where `name` is."""
    parent, _, attribute = name.rpartition(".")
    setattr(net.get_submodule(parent), attribute, new)
