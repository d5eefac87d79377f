"""What several tests wait with and listen by."""

import time


def until(condition, seconds=90.0):
    """Wait for something to become true; what it gave."""
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, "it never came"
        time.sleep(0.02)
    return found


class Memory:
    """A tracker that remembers."""

    def __init__(self):
        self.events = []

    def record(self, event):
        self.events.append(event)

    def close(self):
        pass

    def of(self, kind):
        return [e for e in self.events if isinstance(e, kind)]
