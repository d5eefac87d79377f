"""A slot: one trial's place on a device, with a network of its own that outlives trials, as do its captured steps.

Notation: n images in a batch, K classes, k frozen blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from hpsearch.finetune.augment import Strengths, cutmix, draw_share, mixup
from hpsearch.finetune.blocks import FineTuneModel
from hpsearch.finetune.context import DeviceContext
from hpsearch.finetune.features import Features, Reader
from hpsearch.finetune.heads import Head
from hpsearch.finetune.memory import NEVER, Forecast, Parts, attempt, peak
from hpsearch.finetune.optim import Hyper, Moments, Optimiser
from hpsearch.finetune.recipe import Recipe
from hpsearch.finetune.step import Program, Shape, cross_entropy, smoothed

TERMS = ("l1", "l2_sp", "clip_norm")


class Slot:
    """Trains one trial at a time; `labels` (N,) are those of the training images, `initial` the state that every trial starts from."""

    def __init__(
        self,
        index: int,
        model: FineTuneModel,
        initial: Mapping[str, Tensor],
        features: Features,
        labels: Tensor,
        classes: int,
        context: DeviceContext,
        parts: Parts,
    ) -> None:
        self.index, self.model, self.initial, self.features, self.labels = index, model, initial, features, labels
        self.context, self.parts, self.classes = context, parts, classes
        device = context.device
        self.hyper, self.strengths = Hyper.on(device), Strengths.on(device)
        self.weights, self.onehot = torch.ones(classes, device=device), torch.eye(classes, device=device)
        model.dropout.rate = torch.zeros((), device=device)
        self.shares = torch.Generator()  # random numbers on the host, for mixing
        self.moments: dict[str, Moments] = {}  # by kind of optimiser
        self.optimisers: dict[tuple[str, int, bool], Optimiser] = {}
        self.programs: dict[Shape, Program] = {}
        self.failed: set[Shape] = set()  # could not be captured
        self.stream = torch.cuda.Stream(device) if context.cuda else None
        self.pool = torch.cuda.graph_pool_handle() if context.cuda else None

    @contextmanager
    def turn(self, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
        """While the slot works: its random numbers, on its stream or another."""
        self.context.draws.give(self.index)
        with torch.cuda.stream(stream or self.stream):
            yield

    # ---------------------------------------------------------------- a trial begins

    def begin(self, recipe: Recipe, initial: Mapping[str, Tensor]) -> Optimiser:
        """Hyperparameters, weights and optimiser as at the start of a trial."""
        self.hyper.set(recipe)
        self.strengths.set(recipe)
        self.model.dropout.rate.fill_(recipe.dropout)
        self.weights.copy_(balanced(self.labels, self.classes) if recipe.class_weights == "balanced" else torch.ones(self.classes))
        optimiser = self.optimiser(recipe)
        self.model.restore(initial)
        optimiser.reset(recipe.layer_decay)
        return optimiser

    def optimiser(self, recipe: Recipe) -> Optimiser:
        """The one for this kind and these blocks; it outlives trials, since captured steps write to its tensors."""
        key = (recipe.optimizer, recipe.frozen_layers, recipe.layer_decay != 1)
        if key not in self.optimisers:
            net, tensors, blocks = self.model.net, self.model.cuts.tensors, len(self.model.blocks)
            named = {name: p for name, p in net.named_parameters() if tensors.get(name, -1) >= recipe.frozen_layers}
            anchors = {p: self.initial[name] for name, p in named.items() if tensors[name] < blocks}
            depths = {p: blocks - tensors[name] for name, p in named.items()}
            moments = self.moments.setdefault(recipe.optimizer, Moments(recipe.optimizer))
            self.optimisers[key] = Optimiser(moments, depths, self.hyper, anchors, by_depth=key[2])
        return self.optimisers[key]

    def shape(self, recipe: Recipe, k: int, images: int, kept: bool) -> Shape:
        """The step that a batch takes."""
        terms = frozenset(term for term in TERMS if getattr(recipe, term) > 0)
        augmented = recipe.augments and not kept
        decayed = recipe.layer_decay != 1
        return Shape(k, images, kept, augmented, recipe.mixes, recipe.optimizer, decayed, recipe.frozen_layers, terms)

    def draw_shares(self, recipe: Recipe) -> None:
        """How the next batch is mixed: by mixup, or by cutmix; by one of them at random if the recipe has both."""
        if recipe.mixes:
            cut = recipe.cutmix > 0 and (recipe.mixup == 0 or torch.rand((), generator=self.shares).item() < 0.5)
            self.hyper.mixup.fill_(1.0 if cut else draw_share(recipe.mixup, self.shares))
            self.hyper.cutmix.fill_(draw_share(recipe.cutmix, self.shares) if cut else 1.0)

    # ---------------------------------------------------------------- a step

    def step(self, shape: Shape, optimiser: Optimiser, x: Tensor, y: Tensor) -> Tensor:
        """Train one batch of activations or pixels x (n, ...) with labels y (n,); its mean loss [nats], on the device."""
        program = self.programs.get(shape)
        if program is not None:
            return program(x, y)
        loss = self.gradients(shape, optimiser, x, y)
        optimiser.step(shape.terms)
        return loss

    def gradients(self, shape: Shape, optimiser: Optimiser, x: Tensor, y: Tensor) -> Tensor:
        """Gradients of one batch, in parts where it does not fit into memory; its mean loss."""
        draws = self.context.draws.state()
        total = self.weights[y].sum()

        def begin() -> None:
            optimiser.zero_grad()
            self.context.draws.back(draws)

        return self.parts.backward(shape, len(y), lambda part: self.loss(shape, x[part], y[part]) / total, begin)

    def loss(self, shape: Shape, x: Tensor, y: Tensor) -> Tensor:
        """Sum of a batch's losses; mixed, where it is, within the batch that is given."""
        targets = self.onehot[y]
        if not shape.kept:
            x = self.features.scaled(x, self.strengths if shape.augmented else None)
            if shape.mixed:
                x, targets = cutmix(x, targets, self.hyper.cutmix)
            x = self.features.behind(x, shape.frozen)
        if shape.mixed:
            x, targets = mixup(x, targets, self.hyper.mixup)
        with self.context.autocast():
            logits = self.model.suffix(x, shape.frozen)
        return cross_entropy(logits, targets, self.weights, self.hyper.label_smoothing)

    # ---------------------------------------------------------------- a head by itself

    def head(self, optimiser: Optimiser) -> Head:
        """The head and its optimiser's state, for the batched program."""
        weight, bias = self.model.head.parameters()
        with torch.no_grad():
            w, mean, square = (torch.cat([a, b[:, None]], 1) for a, b in zip(optimiser.of(weight), optimiser.of(bias), strict=True))
        return Head(w, mean, square, self.hyper.weight_decay.item(), int(optimiser.moments.steps[weight].item()))

    def keep_head(self, head: Head, optimiser: Optimiser) -> None:
        """The reverse."""
        weight, bias = self.model.head.parameters()
        with torch.no_grad():
            for both, w, b in zip((head.weight, head.mean, head.square), optimiser.of(weight), optimiser.of(bias), strict=True):
                w.copy_(both[:, :-1])
                b.copy_(both[:, -1])
            for p in (weight, bias):
                optimiser.moments.steps[p].fill_(head.steps)

    def head_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a `heads.Request` takes of features x (n, D) with labels y (n,)."""
        targets = smoothed(self.onehot[y], self.hyper.label_smoothing) * self.weights
        return F.pad(self.model.dropout(x.float()), (0, 1), value=1.0), targets, 1 / self.weights[y].sum()

    # ---------------------------------------------------------------- evaluation

    def logits(self, reader: Reader, k: int) -> Tensor:
        """(N, K) float32 of a split in eval mode, in smaller batches from now on where memory does not suffice."""
        self.model.eval()

        def whole() -> Tensor:
            out, done = torch.empty(reader.images, self.classes, device=self.context.device), 0
            for positions in self.features.batches(reader):
                x = reader.read(positions)
                program = self.programs.get(Shape(k, len(x), reader.kept))
                out[done : done + len(x)] = program(x) if program else self.scores(x, k, reader.kept)
                done += len(x)
            return out

        while (found := attempt(whole)) is None:
            self.features.halve()
        return found

    def scores(self, x: Tensor, k: int, kept: bool) -> Tensor:
        """Logits (n, K) of a batch, without gradients; the model is in eval mode."""
        with torch.no_grad(), self.context.autocast():
            logits = self.model.suffix(x if kept else self.features.front(x, k), k)
        return logits.float()

    # ---------------------------------------------------------------- CUDA

    def capture(self, recipe: Recipe, steps: Sequence[tuple[Shape, Tensor]], training: bool) -> None:
        """Capture every step of a trial that was not captured before, given an input of each, and its evaluation.

        Before `begin`: what is run for it moves weights and optimiser. What does not fit into memory is left to be run in parts.
        """
        if not self.model.cacheable:
            return  # code that could not be traced may do on the host what a graph cannot hold
        optimiser = self.optimiser(recipe)
        for shape, x in steps if training else ():
            if shape not in self.programs and shape not in self.parts.known:
                self.model.freeze(shape.frozen)
                y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
                self.keep(shape, lambda x, y, shape=shape: self.whole_step(shape, optimiser, x, y), x, y)
        self.model.eval()
        for k in {shape.frozen for shape, _ in steps}:
            val = self.features.val(k)
            for positions in {len(p): p for p in self.features.batches(val)}.values():
                shape = Shape(k, len(positions), val.kept)
                if shape not in self.programs:
                    self.keep(shape, lambda x, k=k, kept=val.kept: self.scores(x, k, kept), val.read(positions))

    def keep(self, shape: Shape, work: Callable[..., Tensor], *examples: Tensor) -> None:
        """Capture work as the program of a shape. Where that fails the slot's other programs go too: they share its pool."""
        program, pool = Program(work), self.pool
        assert pool is not None
        if shape in self.failed:
            return
        try:
            captured = attempt(lambda: program.capture(pool, *examples))
        except RuntimeError:  # it does what a graph cannot hold; if the device is lost, the next call will say so
            captured = None
        for optimiser in self.optimisers.values():
            optimiser.zero_grad()
        if captured:
            self.programs[shape] = program
        else:
            self.failed.add(shape)
            self.release()

    def whole_step(self, shape: Shape, optimiser: Optimiser, x: Tensor, y: Tensor) -> Tensor:
        """A step in one piece."""
        optimiser.zero_grad()
        loss = self.loss(shape, x, y) / self.weights[y].sum()
        loss.backward()
        optimiser.step(shape.terms)
        return loss.detach()

    def need(self, forecast: Forecast, recipe: Recipe, shape: Shape, x: Tensor) -> int:
        """Bytes on a GPU that a trial will take with steps on batches like x, from dry runs; moves weights and optimiser."""
        if shape in self.parts.known:
            return NEVER  # the whole did not fit
        optimiser, device, val = self.optimiser(recipe), self.context.device, self.features.val(shape.frozen)

        def dry(work: Callable[[], object]) -> int:
            used = attempt(lambda: peak(work, device))
            optimiser.zero_grad()
            return NEVER if used is None else used

        def step() -> object:
            self.model.freeze(shape.frozen)
            return self.whole_step(shape, optimiser, x, torch.zeros(len(x), dtype=torch.int64, device=device))

        def evaluation() -> object:
            self.model.eval()
            return self.scores(val.read(self.features.batches(val)[0]), shape.frozen, val.kept)

        most = max(forecast.bytes(shape, lambda: dry(step)), forecast.bytes((shape.frozen, val.kept, "eval"), lambda: dry(evaluation)))
        kept = 2 * sum(p.nbytes for p in optimiser.params)  # the best epoch's weights, and those that replace them
        return most + kept + sum(t.nbytes for t in optimiser.state().values())

    def inputs(self) -> int:
        """Bytes that captured steps keep to be given their inputs in."""
        return sum(t.nbytes for program in self.programs.values() for t in program.inputs)

    def release(self) -> None:
        """Give back the memory of captured steps."""
        self.programs.clear()
        for optimiser in self.optimisers.values():
            optimiser.zero_grad()
        if self.context.cuda:
            torch.cuda.empty_cache()


def balanced(labels: Tensor, classes: int) -> Tensor:
    """(K,) weights by which each class counts the same: N / (K n_c); 0 for a class without images."""
    counts = torch.bincount(labels, minlength=classes).float()
    return torch.where(counts > 0, len(labels) / (classes * counts.clamp(min=1)), torch.zeros_like(counts))
