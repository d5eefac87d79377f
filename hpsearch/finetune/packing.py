"""Which trials share a device: as many as there are slots and, on a GPU, as measured memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpsearch.finetune.memory import Forecast
from hpsearch.finetune.recipe import Recipe
from hpsearch.finetune.slot import Slot
from hpsearch.finetune.step import Shape


@dataclass
class Packing:
    """The slots of one device and what they need. `room`: bytes on a GPU that they may take in all."""

    slots: Sequence[Slot]
    room: int
    graphs: bool
    heads: torch.cuda.Stream | None = None  # of trials that train their head alone: they take their steps together
    needs: dict[int, int] = field(default_factory=dict)  # bytes by slot: the most so far, since captured steps keep their memory
    busy: set[int] = field(default_factory=set)
    ended: int = 0  # trials so far
    forecast: Forecast = field(default_factory=Forecast)

    def free(self) -> list[Slot]:
        """Slots without a trial."""
        return [slot for slot in self.slots if slot.index not in self.busy]

    def take(self, recipe: Recipe, steps: Sequence[tuple[Shape, Tensor]], training: bool) -> Slot | None:
        """A slot for a trial that takes these steps, captured where they can be (`training` False: its evaluation only).

        None when the trial has to wait. A trial that is alone always gets one: what does not fit is trained in parts.
        """
        free = self.free()
        if not free:
            return None
        slot = max(free, key=lambda slot: sum(shape in slot.programs for shape, _ in steps))
        if slot.stream is not None:
            with slot.turn():
                need = max(slot.need(self.forecast, recipe, shape, x) for shape, x in steps)
            if not self.fits(slot, need):
                for idle in free:
                    idle.release()
                    self.needs.pop(idle.index, None)
            if self.busy and not self.fits(slot, need):
                return None
            self.needs[slot.index] = max(need, self.needs.get(slot.index, 0))
            if self.graphs:
                with slot.turn():
                    slot.capture(recipe, steps, training)
            slot.stream.synchronize()  # the trial may begin on another stream
        self.busy.add(slot.index)
        return slot

    def leave(self, slot: Slot) -> None:
        """The slot's trial is over."""
        self.busy.discard(slot.index)
        self.ended += 1

    def fits(self, slot: Slot, need: int) -> bool:
        """Whether the slot may take so many bytes beside what the others keep."""
        others = sum(size for index, size in self.needs.items() if index != slot.index) + sum(s.inputs() for s in self.slots)
        return others + max(need, self.needs.get(slot.index, 0)) <= self.room
