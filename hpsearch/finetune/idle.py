"""Layers that should have been trained and were not: seen once, at a trial's end, from what is at hand then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from hpsearch.finetune.state import Live

FEWEST = 3  # steps below which nothing is said: a layer that begins at zero passes nothing on at first
NAMED = 3  # layers that are named


def idle_layers(live: Live, initial: Mapping[str, Tensor], decay: float) -> tuple[list[str], int]:
    """Names of the layers outside the frozen blocks that never moved or never had a gradient, and how many layers there are.

    AdamW remembers the square of every gradient. Under SGD a decayed weight moves by itself and says nothing, so the layer is judged by
    what is not decayed. The device is waited for once.
    """
    model, optimiser = live.model, live.optimiser
    frozen, mine = model.frozen(), set(optimiser.params)
    seen: defaultdict[str, list[Tensor]] = defaultdict(list)
    layers = dict[str, None]()
    for name, p in model.net.named_parameters():
        if p not in mine or model.cuts.tensors.get(name, -1) < frozen:
            continue
        layer = name.rpartition(".")[0]
        layers[layer] = None
        moved = (p.detach() != initial[name]).any()
        if optimiser.kind == "adamw":
            seen[layer].append(moved & optimiser.moments.square[p].any())
        elif p.ndim == 1 or decay == 0:
            seen[layer].append(moved)
    if not seen:
        return [], len(layers)
    learned = torch.stack([torch.stack(flags).any() for flags in seen.values()]).tolist()
    return [layer for layer, live in zip(seen, learned, strict=True) if not live], len(layers)


def remark(live: Live, initial: Mapping[str, Tensor], decay: float) -> str:
    """The same in words; "" where every layer learned, and after too few steps to tell."""
    if live.step < FEWEST:
        return ""
    idle, layers = idle_layers(live, initial, decay)
    if not idle:
        return ""
    more = f" and {len(idle) - NAMED:,} more" if len(idle) > NAMED else ""
    return f"no gradient: {', '.join(idle[:NAMED])}{more} (of {layers:,} layers that are not frozen) did not learn in {live.step:,} steps"
