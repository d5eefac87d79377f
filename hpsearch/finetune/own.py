"""The user's own network: cut into blocks where that is shown to change nothing, frozen in the order of its calls where not.

In the latter case a dropout that the network has before its head stays, beside the sampled one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from hpsearch.errors import FixInput
from hpsearch.finetune import cuts, network_probe
from hpsearch.finetune.blocks import FineTuneModel, drop, renew
from hpsearch.finetune.cuts import Block, Cuts, Head, NoCuts, count, tensors_of, transparent
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.network_probe import Calls

PROBE = 3  # images in the batch that a network is tried with


def own_model(name: str, net: nn.Module, classes: int, expects: Preprocessing) -> FineTuneModel:
    """The user's network, tried on a small batch; by the order of its calls and not cacheable where it cannot be cut."""
    if isinstance(net, torch.jit.ScriptModule):
        raise FixInput(f"the model {name} is a TorchScript program, which cannot be taken apart: let the function return the module itself")
    images = torch.randn(PROBE, expects.channels, expects.size, expects.size)
    net.eval()
    with network_probe.keeping_buffers(net):
        attempt(name, net, images)  # which makes lazy layers, too
    calls = network_probe.calls_of(net, images)
    logits = calls.logits
    if logits.ndim != 2 or len(logits) != PROBE:
        raise FixInput(f"the model {name} must give logits (images, {classes}), but {PROBE} images gave {tuple(logits.shape)}")
    before = {key: tensor.detach().clone() for key, tensor in tensors_of(net).items()}
    head = network_probe.find_head(net, images, calls)
    check_head(name, net, head, logits, classes)
    try:
        with network_probe.keeping_buffers(net):
            found = cuts.find(net, lambda graph: keepable(net, graph, images), head)
            same(net, found, images)
        reason = ""
    except NoCuts as error:
        if not head.called:
            raise FixInput(
                f"the model {name} gets its scores from '{head.name}', which it uses without calling it, and {error}: "
                "let its last layer be a module that is called, such as nn.Linear"
            ) from error
        found, reason = by_calls(net, head, calls), str(error)
    if head.outputs != classes:
        renew(net, found.head, classes)
    drop(net, found.before)
    model = FineTuneModel(net, found, reason)
    for training in (True, False):
        model.train(training)
        logits = attempt(name, model, images)
        if logits.shape != (PROBE, classes):
            raise FixInput(f"the model {name} must give logits (images, {classes}), but {PROBE} images gave {tuple(logits.shape)}")
        model.note = check_scale(name, network_probe.scale_of(net, head, images, logits))
    # Trying it in training mode has moved statistics.
    model.restore({key: tensor for key, tensor in before.items() if head.outputs == classes or not head.has(key)})
    return model


def check_head(name: str, net: nn.Module, head: Head, logits: Tensor, classes: int) -> None:
    """FixInput when the network has no head, or one of another number of classes that cannot be replaced."""
    if not head.name and not bool(logits.isfinite().all()):
        raise FixInput(f"the model {name} gives NaN or infinity for images of normal random numbers: look at how its weights are drawn")
    if not head.name:
        raise FixInput(f"the model {name} has no layer with weights that its outputs depend on, so there is nothing to train")
    if head.outputs != classes and not head.replaceable:
        raise FixInput(
            f"the model {name} gives {head.outputs} scores for {classes} classes, and its head '{head.name}' cannot be replaced: it "
            f"{describe_head(net, head)}; let the function make it for num_classes, or end in nn.Linear"
        )


def describe_head(net: nn.Module, head: Head) -> str:
    """What a head is that is no Linear or Conv2d with an output for each score."""
    if not head.called:
        return "is used without being called"
    layer = net.get_submodule(head.name)
    return f"gives other numbers ({type(layer).__name__})" if isinstance(layer, nn.Linear | nn.Conv2d) else f"is a {type(layer).__name__}"


def check_scale(name: str, scale: str) -> str:
    """What a person should know of the outputs, "" for logits; FixInput when they are probabilities."""
    if scale == "log_softmax":
        return "the model ends in log_softmax, which changes neither loss nor probabilities and may be left out"
    if scale:
        seen = "with the sum 1" if scale == "softmax" else "whatever its head gives"
        raise FixInput(
            f"the model {name} gives probabilities and not logits (all outputs lie between 0 and 1, {seen}), and its loss would be wrong: "
            f"leave out the {scale} at its end; the loss and the exported model apply softmax themselves"
        )
    return ""


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
    look = fx.Interpreter(net, graph=graph)
    look.args_iter = iter([images])
    try:
        with torch.no_grad():
            for node in graph.nodes:  # not look.run(): its progress bar leaves a semaphore behind
                look.env[node] = value = look.run_node(node)
                if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:1] == images.shape[:1]:
                    found.add(node)
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


def by_calls(net: nn.Module, head: Head, calls: Calls) -> Cuts:
    """Blocks in the order in which modules are called, for a network that cannot be traced. They cannot be run one by one."""
    order = {name: i for i, name in enumerate(calls.started)}
    groups: list[list[str]] = []
    waiting: list[str] = []
    for name in in_order(net, list(pieces(net, "", count(net.parameters()), head.name)), order):
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
        homes.setdefault(id(tensor), 0 if i == len(groups) and not head.has(name) else i)
    tensors = {name: homes[id(tensor)] for name, tensor in state.items()}
    sizes = [count(p for name, p in net.named_parameters() if tensors[name] == i) for i in range(len(groups))]
    names = [next(n for n in names if any(p.ndim > 1 for p in net.get_submodule(n).parameters())) for names in groups]
    return Cuts(tuple(map(Block, names, sizes)), head.name, tensors, modules)


def in_order(net: nn.Module, names: list[str], order: Mapping[str, int]) -> list[str]:
    """Modules by their first call; one that is never called stays behind the one registered before it."""
    places, place = [], -1
    for name in names:
        place = min((order[inner] for inner in below(net, name) if inner in order), default=place)
        places.append(place)
    return [name for _, name in sorted(zip(places, names, strict=True), key=lambda pair: pair[0])]


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
