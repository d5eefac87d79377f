"""What a network does, found by running it on a few images: the channels it takes, its head, and whether its outputs are logits.

Notation: N images, C channels, K classes, M outputs of the network as it comes.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from hpsearch.finetune.cuts import Head

IMAGES = 2  # of a batch that shows how many channels a network takes
WIDE = 30.0  # spread of what is put in the place of the head's outputs: logits as large are never all between 0 and 1
ROUNDS = 3


# ---------------------------------------------------------------- running


@contextmanager
def quietly() -> Iterator[None]:
    """Without gradients, and with random numbers of its own; what was compiled runs as it is written, since hooks would compile it anew."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if "torch._dynamo" in sys.modules:
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield


@contextmanager
def keeping_buffers(net: nn.Module) -> Iterator[None]:
    """The network's buffers are afterwards the tensors that they were, and hold what they held, those aside that were not yet made."""
    held: list[tuple[nn.Module, str, Any]] = [
        (module, name, buffer) for module in net.modules() for name, buffer in module._buffers.items()
    ]
    before = [(*entry, entry[2].clone()) for entry in held if entry[2] is not None and not is_lazy(entry[2])]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in before:
                module._buffers[name] = buffer if torch.equal(buffer, values) else buffer.copy_(values)


def outputs_of(net: nn.Module, images: Tensor) -> Any:
    """What the network returns for images, the same each time; neither they nor the network change."""
    with keeping_buffers(net), quietly():
        return net(images.clone())


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Hooks for a while."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def modules_of(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that take hooks, by name: programs of TorchScript do not."""
    yield from ((name, module) for name, module in net.named_modules() if not isinstance(module, torch.jit.ScriptModule))


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that leave the global generator alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- channels


def channels(net: nn.Module, size: int, wanted: int = 3) -> tuple[int, bool]:
    """How many channels the network takes of square images, `wanted` or 3 or 1 if it takes those, and whether it was seen to.

    Where it takes none, the number with which it came furthest.
    """
    done: dict[int, int] = {}
    for n in dict.fromkeys((wanted, 3, 1)):
        done[n], ran = progress(net, size, n)
        if ran:
            return n, True
    for n in dict.fromkeys((entry_channels(net, size, wanted), 4, 2)):
        if n not in done and progress(net, size, n)[1]:
            return n, True
    return max(done, key=lambda n: done[n]), False


def progress(net: nn.Module, size: int, n: int) -> tuple[int, bool]:
    """How many calls of modules end well for images of n channels, and whether all do. Layers that are not yet made are made in a copy."""
    net = copied(net) if lazy(net) else net
    net.eval()
    done: list[str] = []
    with hooked([module.register_forward_hook(lambda *_: done.append("")) for _, module in modules_of(net)]):
        try:
            outputs_of(net, noise(IMAGES, n, size, size))
        except Exception:  # anything may be in a network
            return len(done), False
    return len(done), True


def entry_channels(net: nn.Module, size: int, otherwise: int) -> int:
    """The channels of the first convolution that is called, whether or not it then fails."""
    first: list[int] = []

    def look(module: nn.Module, inputs: Any) -> None:
        del inputs
        if isinstance(module, nn.Conv2d):
            first.append(module.in_channels)

    net = copied(net) if lazy(net) else net
    with hooked([module.register_forward_pre_hook(look) for _, module in modules_of(net)]), suppress(Exception):
        outputs_of(net.eval(), noise(IMAGES, otherwise, size, size))
    return first[0] if first and first[0] > 0 else otherwise


def lazy(net: nn.Module) -> bool:
    """Whether a network has layers that are made by its first batch."""
    return any(map(is_lazy, (*net.parameters(), *net.buffers())))


def copied(net: nn.Module) -> nn.Module:
    """A copy of a network with lazy layers, whose buffers torch does not copy."""
    unmade: list[Any] = [tensor for tensor in (*net.parameters(), *net.buffers()) if is_lazy(tensor)]
    return copy.deepcopy(net, {id(t): type(t)(t.requires_grad, device=t.device, dtype=t.dtype) for t in unmade})


# ---------------------------------------------------------------- the head


@dataclass
class Calls:
    """What was called in one run, and what came of it."""

    logits: Tensor
    started: list[str] = field(default_factory=list)  # every module, in the order of their first calls
    layers: dict[str, tuple[int, ...]] = field(default_factory=dict)  # the shape of each layer's last output, the last called last


def calls_of(net: nn.Module, images: Tensor) -> Calls:
    """The modules that a network calls for images, and its layers with weights."""
    calls, handles = Calls(torch.empty(0)), []
    layers = set(layers_of(net))

    def start(name: str) -> Callable[..., None]:
        return lambda *_: calls.started.append(name) if name not in calls.started else None

    def end(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            calls.layers.pop(name, None)
            calls.layers[name] = tuple(output.shape) if isinstance(output, Tensor) else ()

        return note

    for name, module in modules_of(net):
        handles.append(module.register_forward_pre_hook(start(name)))
        if name in layers:
            handles.append(module.register_forward_hook(end(name)))
    with hooked(handles):
        calls.logits = outputs_of(net, images)
    return calls


def layers_of(net: nn.Module) -> list[str]:
    """Names of the layers that have weights themselves: Linear, Conv2d, and others whose children have none."""
    found = []
    for name, module in modules_of(net):
        inner = any(True for child in module.children() for _ in child.parameters())
        own = not inner and any(p.ndim > 1 for p in module.parameters(recurse=False))
        if name and ".parametrizations." not in name and (isinstance(module, nn.Linear | nn.Conv2d) or own):
            found.append(name)
    return found


def find_head(net: nn.Module, images: Tensor, calls: Calls) -> Head:
    """The layer from which the logits (N, M) come: the last called whose output they change with and which gives M numbers.

    A head may be a tensor that the network multiplies with itself: then it is one that acts behind that layer. What gives another number is
    the head where there is no such tensor, and then it cannot be replaced.
    """
    count = calls.logits.shape[1]
    last = next((name for name in reversed(calls.layers) if reaches(net, images, calls.logits, name)), None)
    if last is not None and count == width(net.get_submodule(last), calls.layers[last], count):
        return Head(last, count, replaceable=isinstance(net.get_submodule(last), nn.Linear | nn.Conv2d))
    if tensor := loose_head(net, images, count, last, calls):
        return Head(tensor, count, called=False, replaceable=False)
    return Head(last or "", count, replaceable=False)


def width(layer: nn.Module, shape: tuple[int, ...], count: int) -> int:
    """How many numbers a layer gives: of a Linear or Conv2d its own, of another `count` where its output has a dimension of that size."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels
    return count if count in shape[1:] else -1


def same(a: Tensor, b: Any) -> bool:
    """Whether two outputs are equal but for the arithmetic."""
    return isinstance(b, Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)


def reaches(net: nn.Module, images: Tensor, logits: Tensor, layer: str) -> bool:
    """Whether the logits change with the outputs of a layer, by any of a few changes: some ends take little notice of one."""
    return any(not same(logits, changed_by(net, images, layer, seed)) for seed in range(ROUNDS))


def changed_by(net: nn.Module, images: Tensor, layer: str, seed: int) -> Any:
    """The network's outputs with something added to those of a layer; None where it then fails, which is a change too."""

    def change(module: nn.Module, inputs: Any, output: Any) -> Any:
        del module, inputs
        return altered(output, seed)

    with hooked([net.get_submodule(layer).register_forward_hook(change)]):
        return run_or_none(net, images)


def altered(output: Any, seed: int = 0) -> Any:
    """Tensors of floats with noise added, within tuples too."""
    if isinstance(output, tuple):
        return tuple(altered(value, seed) for value in output)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return output
    return output + noise(*output.shape, seed=seed).to(output) * (1 + output.abs().max())


def run_or_none(net: nn.Module, images: Tensor) -> Any:
    """What the network returns; None where it fails."""
    try:
        return outputs_of(net, images)
    except Exception:  # anything may be in a network
        return None


def loose_head(net: nn.Module, images: Tensor, count: int, last: str | None, calls: Calls) -> str:
    """The weights of M rows or columns that act behind the layer `last` without being a layer that is called; "" when there are none.

    The name of the layer that holds them, or of the parameter.
    """
    held: list[Any] = []
    layer = net.get_submodule(last) if last else None
    with hooked([layer.register_forward_hook(lambda *values: held.append(copy.deepcopy(values[2])))] if layer else []):
        outputs_of(net, images)

    def run() -> Any:
        """The outputs, whatever comes before the end of `last`."""
        given = iter(held)
        with hooked([layer.register_forward_hook(lambda *_: copy.deepcopy(next(given)))] if layer else []):
            return run_or_none(net, images)

    unchanged, found = run(), ""
    layers = set(layers_of(net))
    for name, parameter in net.named_parameters():
        owner = name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
        fits = parameter.ndim > 1 and count in parameter.shape and parameter.numel() >= 2 * count and parameter.is_floating_point()
        if fits and owner not in calls.layers and isinstance(unchanged, Tensor) and not same(unchanged, with_other(parameter, run)):
            found = owner if owner in layers else name
    return found


def with_other(parameter: nn.Parameter, run: Callable[[], Any]) -> Any:
    """What `run` returns while a parameter has other values."""
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.copy_(altered(before))
        return run()
    finally:
        with torch.no_grad():
            parameter.copy_(before)


# ---------------------------------------------------------------- logits


def scale_of(net: nn.Module, head: Head, images: Tensor, outputs: Tensor) -> str:
    """What the network's outputs (N, K) for images are: "softmax", "log_softmax" or "sigmoid"; "" for logits.

    They are looked at as they come, and with wide random numbers in the place of what the head gives: only a function behind it can bring
    those between 0 and 1, or to a sum of 1. What is seen to be logits is run no further.
    """
    kinds = kinds_of(outputs)
    for seed, scale in enumerate((3.0, 0.1)):
        kinds &= kinds_of(run_or_none(net, scale * noise(*images.shape, seed=seed).to(images))) if kinds else kinds
    for seed in range(ROUNDS):
        kinds &= kinds_of(widened(net, head, images, seed)) if kinds else kinds
    return next((kind for kind in ("log_softmax", "softmax", "sigmoid") if kind in kinds), "")


def kinds_of(outputs: Any) -> set[str]:
    """What numbers (N, K) could be beside logits."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        return set()
    near = 1e-3 if outputs.dtype in (torch.float32, torch.float64) else 1e-2
    z, found = outputs.double(), set()
    if bool((z.logsumexp(1).abs() < near).all()):
        found.add("log_softmax")
    if bool(((z >= 0) & (z <= 1 + near)).all()):
        found |= {"sigmoid", "softmax"} if bool(((z.sum(1) - 1).abs() < near).all()) else {"sigmoid"}
    return found


def widened(net: nn.Module, head: Head, images: Tensor, seed: int) -> Any:
    """The network's outputs with wide random numbers in the place of its head's, or of the weights of one that is not called.

    They are the same at all positions of an image.
    """
    if head.called:

        def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
            del inputs
            if not isinstance(output, Tensor):
                return output
            shape = [1] * output.ndim
            shape[0], channel = output.shape[0], 1 if isinstance(module, nn.Conv2d) else -1
            shape[channel] = output.shape[channel]
            return (WIDE * noise(*shape, seed=seed)).to(output).expand_as(output).clone()

        with hooked([net.get_submodule(head.name).register_forward_hook(replace)]):
            return run_or_none(net, images)
    weights = [(name, p, p.detach().clone()) for name, p in net.named_parameters() if head.has(name) and p.ndim > 1]
    with torch.no_grad():
        for _, parameter, _ in weights:
            parameter.copy_(WIDE * noise(*parameter.shape, seed=seed))
        try:
            return run_or_none(net, images)
        finally:
            for _, parameter, before in weights:
                parameter.copy_(before)
