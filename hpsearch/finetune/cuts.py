"""Where a network can be cut into blocks: found by tracing it with torch.fx, not listed per architecture.

A *raw cut* is a place in the execution order at which exactly one activation is alive. Segments between raw cuts are
joined into blocks that a person recognises and that own weights. Blocks run the network's own modules and parameters:
each is a function generated from its part of the graph and called with the network as `self`, so nothing is copied and
nothing goes stale when the network moves to another device or is deep-copied.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

Run = Callable[[nn.Module, Tensor], Tensor]  # (network, activation at the cut) -> activation at the next cut
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
INPLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)


@dataclass(frozen=True)
class Block:
    """A part of a network that is frozen as a whole."""

    name: str  # where it is in the network: "layer1.0", "stem: conv1"
    parameters: int  # elements it owns; a tensor used by two blocks belongs to the first


@dataclass(frozen=True)
class Head:
    """The last layer of a network, as running it has shown."""

    name: str  # of a module, or of a parameter
    outputs: int  # scores that the network gives as it comes
    called: bool = True  # otherwise the network uses its weights without calling it
    replaceable: bool = True  # by a new layer with another number of outputs

    def has(self, tensor: str) -> bool:
        """Whether a tensor of that name belongs to it."""
        return name_is(tensor, self.name)


@dataclass(frozen=True)
class Cuts:
    """A network's blocks and where every tensor and module of it belongs: block index, or len(blocks) for the head."""

    blocks: tuple[Block, ...]
    head: str  # name of the head in the network
    tensors: dict[str, int]  # by name in net.state_dict(); those that are never used are absent
    modules: dict[str, int]  # by name in net.named_modules(); a composite belongs to its last block
    runs: tuple[Run, ...] = ()  # one a block; empty when the network could not be traced
    tail: Run | None = None  # from the input of the head to the output
    before: str = ""  # name of the dropout that acts on the input of the head, if there is one
    plain: bool = False  # whether the tail is the head and nothing more
    called: bool = True  # whether the head is a module that is called; otherwise its weights alone are used


def name_is(tensor: str, holder: str) -> bool:
    """Whether a tensor of that name is `holder`, or belongs to the module of that name."""
    return tensor == holder or tensor.startswith(f"{holder}.")


class NoCuts(Exception):
    """The network cannot be cut; the message says why."""


class Tracer(fx.Tracer):
    """Keeps modules whole that have no children, that torch supplies, or whose behaviour depends on `training`."""

    proxy_buffer_attributes = True  # read where they are, not baked in

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a call of `m` is one node."""
        del module_qualified_name
        torch_made = type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
        return torch_made or next(m.children(), None) is None or reads_training(type(m))

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The images are the only input; other arguments of forward keep their defaults."""
        del is_module, concrete_args
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]


def reads_training(kind: type) -> bool:
    """Whether a method of the class reads `training`: traced in eval mode, it would stay in eval mode for ever."""
    bases = [base for base in kind.__mro__ if issubclass(base, nn.Module) and not base.__module__.startswith("torch.nn")]
    functions = [f for base in bases for f in vars(base).values() if isinstance(f, types.FunctionType)]
    return any("training" in code.co_names for f in functions for code in nested(f.__code__))


def nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from nested(constant)


def trace(net: nn.Module) -> fx.Graph:
    """The graph of `net`, which is left in eval mode. Raises NoCuts when it cannot be traced."""
    net.eval()
    try:
        graph = Tracer().trace(net)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise NoCuts(f"torch.fx cannot trace it ({type(error).__name__}: {first})") from error
    for name, value in list(vars(net).items()):
        if name.startswith("_tensor_constant"):  # the tracer's; as a buffer it follows the network to its device
            delattr(net, name)
            net.register_buffer(name, value, persistent=False)
    return graph


@dataclass
class Segment:
    """Nodes between two raw cuts."""

    nodes: list[fx.Node]
    out: fx.Node  # the activation at its end
    owned: list[str] = field(default_factory=list)  # tensors that it is the first to use
    rank: int = 0  # what parameters it owns: 0 none, 1 loose ones (tokens, scales), 2 vectors (normalisation), 3 weights

    @property
    def where(self) -> str:
        """Name of the first tensor that it owns, "" without any."""
        return self.owned[0] if self.owned else ""


def find(net: nn.Module, accepts: Callable[[fx.Graph], set[fx.Node]] | None = None, seen: Head | None = None) -> Cuts:
    """Blocks of `net` in the order of execution; `accepts` gives the nodes whose values may be kept (all, by default).

    The head is the one that was `seen`, else the last layer that is called. Raises NoCuts when the network cannot be traced, or has no
    such head at its end.
    """
    graph = trace(net)
    if seen is not None:
        erase_idle(graph, net)
    head = find_head(graph, net) if seen is None else None if not seen.called else call_of(graph, seen)
    name = seen.name if seen is not None else str(head.target) if head is not None else ""
    entry = next(node for node in graph.nodes if node.op == "placeholder")
    steps = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    if seen is not None and head is None:
        steps = weights_late(steps, entry)
    raw = raw_cuts(steps, entry)
    allowed = raw if accepts is None else raw & accepts(graph)
    last = head.args[0] if head is not None else input_of(steps, entry, allowed, name)
    if not isinstance(last, fx.Node) or (last is not entry and last not in raw):
        raise NoCuts(f"more than one activation is alive before its head '{name}'")
    if last is not entry and accepts is not None and last not in allowed:
        raise NoCuts(f"the input of its head '{name}' is not one tensor with the images first")
    end = -1 if last is entry else steps.index(last)
    total = count(net.parameters())
    opaque = {name for name, module in net.named_modules() if name and not transparent(module, total)}
    kept = [i for i in range(end + 1) if steps[i] in allowed and (i == end or not inside(steps[i], steps[i + 1], opaque))]
    segments = [Segment(steps[a + 1 : b + 1], steps[b]) for a, b in zip([-1, *kept], kept, strict=False)]
    closing = Segment(steps[end + 1 :], output_of(graph))
    own(net, [*segments, closing])
    if head is None and any(weight.ndim > 1 and not name_is(n, name) for n, weight in weights_of(net, closing.owned)):
        raise NoCuts(f"other weights act together with its head '{name}'")
    groups = group(segments)
    closing = closing if groups else Segment(steps, closing.out, closing.owned)
    return replace(assemble(net, groups, closing, name, last, entry), plain=closing.nodes == [head], called=head is not None)


def find_head(graph: fx.Graph, net: nn.Module) -> fx.Node:
    """The last Linear or Conv2d called; NoCuts when something with weights, normalisation aside, comes after it."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    found = [node for node in calls if isinstance(net.get_submodule(str(node.target)), (nn.Linear, nn.Conv2d))]
    if not found:
        raise NoCuts("it calls no Linear or Conv2d that could be its head")
    after = calls[calls.index(found[-1]) + 1 :]
    if any(p.ndim > 1 for node in after for p in net.get_submodule(str(node.target)).parameters()):
        raise NoCuts("its last layer with weights is no Linear or Conv2d")
    last: fx.Node = found[-1]
    if sum(node.target == last.target for node in calls) > 1:
        raise NoCuts(f"its last layer '{last.target}' is called more than once")
    return last


def call_of(graph: fx.Graph, head: Head) -> fx.Node:
    """The one call of a head; NoCuts when there is none, or more than one."""
    calls: list[fx.Node] = [node for node in graph.nodes if node.op == "call_module" and node.target == head.name]
    if not calls:
        raise NoCuts(f"its head '{head.name}' lies inside of a part that is not taken apart")
    if len(calls) > 1:
        raise NoCuts(f"its last layer '{head.name}' is called more than once")
    return calls[0]


def erase_idle(graph: fx.Graph, net: nn.Module) -> None:
    """Take out what does not reach the output, such as the heads that only training uses; what may change something else stays."""
    for node in reversed(list(graph.nodes)):
        keeps = node.op == "call_module" and next(net.get_submodule(str(node.target)).buffers(), None) is not None
        if not (node.users or keeps or node.op in ("placeholder", "output") or writes(node, net)):
            graph.erase_node(node)


def weights_late(steps: list[fx.Node], entry: fx.Node) -> list[fx.Node]:
    """Steps in an order in which what is computed from weights alone comes directly before its first use."""
    active = {entry}
    for node in steps:
        if active & set(node.all_input_nodes):
            active.add(node)
    found: dict[fx.Node, None] = {}

    def place(node: fx.Node) -> None:
        for other in node.all_input_nodes:
            if other not in active and other.op != "get_attr" and other not in found:
                place(other)
        found[node] = None

    for node in steps:
        if node in active:
            place(node)
    return list(found)


def input_of(steps: list[fx.Node], entry: fx.Node, allowed: set[fx.Node], head: str) -> fx.Node:
    """The activation that the tensors of a head which is not called act on: the last that may be kept before their first use."""
    made, last = {entry}, entry
    for node in steps:
        uses = any(name_is(str(a.target), head) for a in weights_behind(node, made))
        if uses and made & set(node.all_input_nodes):
            return last
        if made & set(node.all_input_nodes):
            made.add(node)
        if node in allowed:
            last = node
    raise NoCuts(f"its trace does not use its head '{head}'")


def weights_behind(node: fx.Node, active: set[fx.Node]) -> Iterator[fx.Node]:
    """The tensors of the network that a node uses, also through steps that take nothing but them."""
    for other in node.all_input_nodes:
        if other.op in ("get_attr", "call_module") and other not in active:
            yield other
        if other not in active:
            yield from weights_behind(other, active)


def weights_of(net: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The parameters among tensors of those names."""
    state = tensors_of(net)
    yield from ((name, state[name]) for name in names if isinstance(state[name], nn.Parameter))


def output_of(graph: fx.Graph) -> fx.Node:
    """The node whose value is returned; NoCuts when it is no single value."""
    value = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(value, fx.Node):
        raise NoCuts("it returns more than the logits")
    return value


def raw_cuts(steps: list[fx.Node], entry: fx.Node) -> set[fx.Node]:
    """Nodes after which nothing but their own value is alive. Values that are taken apart (tuples) are left out."""
    order = {node: i for i, node in enumerate(steps)}
    last_use = {node: max((order.get(user, len(steps)) for user in node.users), default=-1) for node in [entry, *steps]}
    found, alive_until = set(), last_use[entry]  # the latest use of anything but the node itself
    for i, node in enumerate(steps):
        if alive_until <= i < last_use[node] and not all(takes_apart(user) for user in node.users):
            found.add(node)
        alive_until = max(alive_until, last_use[node])
    return found


def takes_apart(node: fx.Node) -> bool:
    """Whether a node reads one item, or an attribute such as the shape."""
    item = node.target is operator.getitem and isinstance(node.args[1], int)
    return item or node.target is getattr


def transparent(module: nn.Module, total: int) -> bool:
    """Whether cuts inside a composite count: a plain container, a series of like composites, or most of `total` parameters."""
    return type(module) in CONTAINERS or holds_series(module) or 2 * count(module.parameters()) > total


def holds_series(module: nn.Module) -> bool:
    """Whether `module` repeats a composite in a container of its own, as ViT's encoder and RegNet's stages do."""
    containers = [module] if isinstance(module, CONTAINERS) else [child for child in module.children() if type(child) in CONTAINERS]
    return any(repeats(container) for container in containers)


def repeats(container: nn.Module) -> bool:
    """Whether the children are two or more composites of one class that is not itself a container."""
    children = list(container.children())
    composites = [child for child in children if next(child.children(), None) is not None and not isinstance(child, CONTAINERS)]
    return len(children) == len(composites) > 1 and len({type(child) for child in children}) == 1


def count(tensors: Iterable[Tensor]) -> int:
    """Elements of the tensors together."""
    return sum(t.numel() for t in tensors)


def inside(node: fx.Node, following: fx.Node, opaque: set[str]) -> bool:
    """Whether two neighbours belong to one call of a module that is not to be cut."""
    here, there = (n.meta.get("nn_module_stack", {}) for n in (node, following))
    return any(here[call][0] in opaque for call in here if call in there)


def own(net: nn.Module, segments: list[Segment]) -> None:
    """Give every tensor to the first segment that uses it."""
    state = tensors_of(net)
    taken: set[int] = set()
    for segment in segments:
        for name, loose in touched(segment, net):
            if name in state and id(state[name]) not in taken:
                taken.add(id(state[name]))
                segment.owned.append(name)
                if isinstance(state[name], nn.Parameter):
                    segment.rank = max(segment.rank, 1 if loose else 3 if state[name].ndim > 1 else 2)


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of `net` by the names of its state_dict()."""
    return {name: value for name, value in net.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def touched(segment: Segment, net: nn.Module) -> Iterator[tuple[str, bool]]:
    """Names of the tensors that a segment uses, in the order of use, and whether they are used outside a layer."""
    for node in segment.nodes:
        yield from ((str(a.target), True) for a in node.all_input_nodes if a.op == "get_attr")
        if node.op == "call_module":
            yield from ((f"{node.target}.{name}", False) for name in net.get_submodule(str(node.target)).state_dict(keep_vars=True))


def group(segments: list[Segment]) -> list[list[Segment]]:
    """Join segments so that every group owns the weights of a layer.

    One without joins the group before it; if it is normalisation, the neighbour that is nearer in the tree of modules,
    and the one before when both are as near. At the start all join the group after.
    """
    groups: list[list[Segment]] = []
    waiting: list[Segment] = []
    for i, segment in enumerate(segments):
        if segment.rank == 3:
            groups.append([*waiting, segment])
            waiting = []
        elif waiting or not groups or (segment.rank == 2 and leans_forward(segment, groups[-1], segments[i + 1 :])):
            waiting.append(segment)
        else:
            groups[-1].append(segment)
    if waiting and groups:
        groups[-1] += waiting
    elif any(segment.rank for segment in waiting):
        groups.append(waiting)
    return groups


def leans_forward(segment: Segment, before: list[Segment], after: list[Segment]) -> bool:
    """Whether the next layer is nearer in the tree of modules than the group before."""
    following = next((s.where for s in after if s.rank == 3), "")
    return nearer(segment.where, following) > max(nearer(segment.where, s.where) for s in before)


def nearer(name: str, other: str) -> int:
    """Components that two dotted names share at the start."""
    return len(common(name.split("."), other.split(".")))


def common(a: list[str], b: list[str]) -> list[str]:
    """The longest common start of two lists."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:same]


def assemble(net: nn.Module, groups: list[list[Segment]], closing: Segment, head: str, last: fx.Node, entry: fx.Node) -> Cuts:
    """Blocks with their names and functions, from groups of segments and the part from `last`, the input of the head, on."""
    state = tensors_of(net)
    homes = {id(state[name]): i for i, members in enumerate([*groups, [closing]]) for segment in members for name in segment.owned}
    tensors = {name: homes[id(tensor)] for name, tensor in state.items() if id(tensor) in homes}  # tied names too
    parts = [[node for segment in members for node in segment.nodes] for members in groups]
    outs = [members[-1].out for members in groups]
    sizes = [count(state[n] for s in members for n in s.owned if isinstance(state[n], nn.Parameter)) for members in groups]
    names = [("stem: " if i == 0 else "") + title(i, groups[i], tensors) for i in range(len(groups))]
    return Cuts(
        blocks=tuple(map(Block, names, sizes)),
        head=head,
        tensors=tensors,
        modules=place_modules(net, [*parts, closing.nodes]),
        runs=tuple(compile_part(net, part, start, out) for part, start, out in zip(parts, [entry, *outs], outs, strict=False)),
        tail=compile_part(net, closing.nodes, outs[-1] if outs else entry, closing.out),
        before=dropout_before(last, net),
    )


def title(index: int, members: list[Segment], tensors: dict[str, int]) -> str:
    """The largest module that lies wholly in block `index`, found upwards from what its weights have in common."""
    paths = [name.split(".")[:-1] for segment in members if segment.rank == 3 for name in segment.owned]
    path = next((p for p in paths if p), [members[0].where])
    for other in paths:
        path = common(path, other) or path
    while len(path) > 1 and all(i == index for name, i in tensors.items() if name.startswith(".".join(path[:-1]) + ".")):
        path = path[:-1]
    return ".".join(path)


def place_modules(net: nn.Module, parts: list[list[fx.Node]]) -> dict[str, int]:
    """The part of every module that is called: the first for a module called twice, the last inside for a composite."""
    place: dict[str, int] = {}
    for i, part in enumerate(parts):
        for target in [str(node.target) for node in part if node.op == "call_module"]:
            if target not in place:
                place |= {f"{target}.{name}".rstrip("."): i for name, _ in net.get_submodule(target).named_modules()}
    for target, i in list(place.items()):
        for parent in [target.rsplit(".", n)[0] for n in range(1, target.count(".") + 1)] + [""]:
            place[parent] = max(place.get(parent, i), i)
    return place


def compile_part(net: nn.Module, nodes: list[fx.Node], start: fx.Node, out: fx.Node) -> Run:
    """A function of (network, activation at `start`) that runs `nodes` and returns the value of `out`."""
    graph = fx.Graph()
    made = {start: graph.placeholder("x")}
    if any(writes(user, net) and user.args[:1] == (start,) for user in nodes):
        made[start] = graph.call_method("clone", (made[start],))  # a kept activation must not change

    def copy(node: fx.Node) -> fx.Node:
        if node not in made and node.op == "get_attr":
            made[node] = graph.node_copy(node)
        return made[node]

    for node in nodes:
        made[node] = graph.node_copy(node, copy)
    graph.output(made[out])
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, f"<block up to {out.name}>", "exec"), namespace)
    run: Run = namespace["forward"]
    return run


def writes(node: fx.Node, net: nn.Module) -> bool:
    """Whether a node overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(net.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    name = getattr(node.target, "__name__", "")
    return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__")) or node.target in INPLACE


def dropout_before(last: fx.Node, net: nn.Module) -> str:
    """Name of the Dropout whose output is `last`, the input of the head, flattened perhaps; "" when there is none."""
    node: Any = last
    while isinstance(node, fx.Node) and node.op != "placeholder":
        module = net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            return str(node.target)
        if not isinstance(module, nn.Flatten | nn.Identity) and getattr(node.target, "__name__", node.target) not in (
            "flatten",
            "reshape",
            "view",
        ):
            break
        node = node.args[0]
    return ""
