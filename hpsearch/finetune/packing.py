"""Which trials share a device: as many as there are slots and, on a GPU, as measured memory allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpsearch.finetune.memory import Forecast
from hpsearch.finetune.recipe import Recipe
from hpsearch.finetune.sharing import LOOK, DeviceShare
from hpsearch.finetune.slot import Slot
from hpsearch.finetune.step import Shape


@dataclass
class Crowd:
    """All that is on one device: the slots of every kernel there, and what they need."""

    slots: dict[int, Slot] = field(default_factory=dict)  # by their index
    room: int = 0  # bytes on a GPU that they may take in all
    taken: dict[int, int] = field(default_factory=dict)  # bytes that a kernel took beside them, by its first slot
    needs: dict[int, int] = field(default_factory=dict)  # bytes by slot: the most so far, since captured steps keep their memory
    busy: set[int] = field(default_factory=set)
    ended: int = 0  # trials so far
    share: DeviceShare | None = None  # with other processes, on a GPU
    waits: str = ""  # why they are waited for
    looked: float = 0.0  # when that was found

    def enter(self, slots: Sequence[Slot], free: int, taken: int, budget: int) -> None:
        """A kernel's slots come; it took so much memory that so much is free now, and it will keep activations in its budget."""
        self.room = (self.room - taken if self.slots else free) - budget
        self.taken[slots[0].index] = taken
        self.slots |= {slot.index: slot for slot in slots}

    def release(self) -> None:
        """Give back what slots without a trial keep."""
        less = 0
        for index in self.slots.keys() - self.busy:
            self.slots[index].release()
            less += self.needs.pop(index, 0)
        if self.share is not None:
            self.share.leave(less, len(self.busy))

    def admits(self, more: int) -> bool:
        """Whether other processes on the device leave room for one more trial, which takes so many bytes beyond what its slot has."""
        self.waits = self.share.ask(more, len(self.busy)) if self.share is not None else ""
        self.looked = time.monotonic()
        if self.waits:
            self.release()
        return not self.waits

    @property
    def due(self) -> bool:
        """Whether it is time to ask again: nobody says when another process leaves."""
        return bool(self.waits) and time.monotonic() - self.looked > LOOK

    def quit(self, slots: Sequence[Slot]) -> None:
        """The slots of a kernel that had no budget of its own go."""
        self.room += self.taken.pop(slots[0].index)
        for slot in slots:
            del self.slots[slot.index]
            self.needs.pop(slot.index, None)


@dataclass
class Packing:
    """The slots of one kernel on a device that it may share with others."""

    slots: Sequence[Slot]
    crowd: Crowd
    graphs: bool
    heads: torch.cuda.Stream | None = None  # of trials that train their head alone: they take their steps together
    forecast: Forecast = field(default_factory=Forecast)

    @property
    def busy(self) -> set[int]:
        """The slots on the device that have a trial."""
        return self.crowd.busy

    @property
    def ended(self) -> int:
        """Trials on the device so far."""
        return self.crowd.ended

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
            need = min(need, self.crowd.room)  # what does not fit takes all there is, in parts
            if not self.fits(slot, need):
                self.crowd.release()
            if self.busy and not self.fits(slot, need):
                return None
            before = self.crowd.needs.get(slot.index, 0)
            if not self.crowd.admits(max(need - before, 0)):
                return None
            self.crowd.needs[slot.index] = max(need, before)
            if self.graphs:
                with slot.turn():
                    slot.capture(recipe, steps, training)
            slot.stream.synchronize()  # the trial may begin on another stream
        self.busy.add(slot.index)
        return slot

    def leave(self, slot: Slot) -> None:
        """The slot's trial is over."""
        self.busy.discard(slot.index)
        self.crowd.ended += 1
        if self.crowd.share is not None:
            self.crowd.share.leave(0, len(self.busy))

    def fits(self, slot: Slot, need: int) -> bool:
        """Whether the slot may take so many bytes beside what the others keep."""
        needs, slots = self.crowd.needs, self.crowd.slots.values()
        others = sum(size for index, size in needs.items() if index != slot.index) + sum(s.inputs() for s in slots)
        return others + max(need, needs.get(slot.index, 0)) <= self.crowd.room
