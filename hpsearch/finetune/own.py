"""The user's own network: cut into blocks where that is shown to change nothing, frozen by registration order where not.

In the latter case a dropout that the network has before its head stays, beside the sampled one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from hpsearch.errors import FixInput
from hpsearch.finetune import cuts
from hpsearch.finetune.blocks import FineTuneModel, drop, outputs, renew, restore
from hpsearch.finetune.cuts import Block, Cuts, NoCuts, count, tensors_of, transparent
from hpsearch.finetune.images import Preprocessing

PROBE = 3  # images in the batch that a network is tried with


def own_model(name: str, net: nn.Module, classes: int, expects: Preprocessing) -> FineTuneModel:
    """The user's network, tried on a small batch; by registration order and not cacheable where it cannot be cut."""
    images = torch.randn(PROBE, expects.channels, expects.size, expects.size)
    net.eval()
    attempt(name, net, images)
    before = {key: tensor.detach().clone() for key, tensor in tensors_of(net).items()}
    try:
        found = cuts.find(net, lambda graph: keepable(net, graph, images))
        same(net, found, images)
        reason = ""
    except NoCuts as error:
        found, reason = by_registration(net, classes), str(error)
    if outputs(net.get_submodule(found.head)) != classes:
        renew(net, found.head, classes)
    drop(net, found.before)
    model = FineTuneModel(net, found, reason)
    for training in (True, False):
        model.train(training)
        logits = attempt(name, model, images)
        if logits.shape != (PROBE, classes):
            raise FixInput(f"the model {name} must give logits (images, {classes}), but {PROBE} images gave {tuple(logits.shape)}")
    # Trying it in training mode has moved statistics.
    restore(net, {key: tensor for key, tensor in before.items() if not key.startswith(f"{found.head}.")})
    return model


def attempt(name: str, net: nn.Module, images: Tensor) -> Tensor:
    """The network's output for a few images; FixInput when it fails or is no tensor."""
    try:
        with torch.no_grad():
            logits = net(images)
    except Exception as error:
        shape = " x ".join(map(str, images.shape[1:]))
        raise FixInput(f"the model {name} fails on images of {shape}: {type(error).__name__}: {error}; see preprocess.size") from error
    if not isinstance(logits, Tensor):
        mode = "training" if net.training else "eval"
        raise FixInput(
            f"the model {name} must return a tensor of logits (images, classes); in {mode} mode it returned {type(logits).__name__}"
        )
    return logits


def keepable(net: nn.Module, graph: fx.Graph, images: Tensor) -> set[fx.Node]:
    """Nodes whose values are tensors with the images first, so that they can be kept image by image."""
    found: set[fx.Node] = set()

    class Look(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:1] == images.shape[:1]:
                found.add(n)
            return value

    try:
        with torch.no_grad():
            Look(net, graph=graph).run(images)
    except Exception as error:
        raise NoCuts(f"its trace does not run ({type(error).__name__}: {error})") from error
    return found


def same(net: nn.Module, found: Cuts, images: Tensor) -> None:
    """Raise NoCuts unless blocks and head together compute what `net` computes, in eval and in training mode."""
    model = FineTuneModel(net, found)
    for training in (False, True):
        outcomes: list[Any] = []
        for run in (net, model):
            model.train(training)
            model.dropout.eval()
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                try:
                    outcomes.append(run(images))
                except Exception as error:
                    raise NoCuts(f"it fails in {'training' if training else 'eval'} mode ({type(error).__name__}: {error})") from error
        if not all(isinstance(outcome, Tensor) for outcome in outcomes):
            raise NoCuts("it returns more than the logits")
        if outcomes[0].shape != outcomes[1].shape or not torch.allclose(outcomes[0], outcomes[1], rtol=1e-4, atol=1e-5, equal_nan=True):
            raise NoCuts(f"cut into blocks it computes something else in {'training' if training else 'eval'} mode")


def by_registration(net: nn.Module, classes: int) -> Cuts:
    """Blocks in the order in which modules are registered, for a network that cannot be traced. They cannot be run one by one.

    The head is the last Linear or Conv2d with `classes` outputs, or else the last at all; FixInput when there is none.
    """
    layers = {name: m for name, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    fitting = [name for name, m in layers.items() if classes == (m.out_features if isinstance(m, nn.Linear) else m.out_channels)]
    if not layers:
        raise FixInput("your model has no Linear or Conv2d layer that could be its head")
    head = (fitting or list(layers))[-1]
    groups: list[list[str]] = []
    waiting: list[str] = []
    for name in pieces(net, "", count(net.parameters()), head):
        if any(p.ndim > 1 for p in net.get_submodule(name).parameters()):
            groups.append([*waiting, name])
            waiting = []
        else:
            (groups[-1] if groups and not waiting else waiting).append(name)
    if waiting and groups:
        groups[-1] += waiting
    modules = {sub: i for i, names in enumerate(groups) for n in names for sub in below(net, n)}
    modules = {name: modules.get(name, len(groups)) for name, _ in net.named_modules()}
    state = tensors_of(net)
    homes: dict[int, int] = {}
    for name, tensor in state.items():  # what no block holds, such as a loose token, belongs to the first
        i = modules[name.rpartition(".")[0]]
        homes.setdefault(id(tensor), 0 if i == len(groups) and not name.startswith(f"{head}.") else i)
    tensors = {name: homes[id(tensor)] for name, tensor in state.items()}
    sizes = [count(p for name, p in net.named_parameters() if tensors[name] == i) for i in range(len(groups))]
    names = [next(n for n in names if any(p.ndim > 1 for p in net.get_submodule(n).parameters())) for names in groups]
    return Cuts(tuple(map(Block, names, sizes)), head, tensors, modules)


def below(net: nn.Module, name: str) -> list[str]:
    """Names of a module and of those inside it."""
    return [f"{name}.{sub}".rstrip(".") for sub, _ in net.get_submodule(name).named_modules()]


def pieces(module: nn.Module, name: str, total: int, head: str) -> Iterator[str]:
    """Names of the parts of a network that are not to be cut further, the head left out."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}".lstrip(".")
        holds_head = head.startswith(f"{full}.")
        if full != head and (holds_head or (next(child.children(), None) is not None and transparent(child, total))):
            yield from pieces(child, full, total, head)
        elif full != head:
            yield full
