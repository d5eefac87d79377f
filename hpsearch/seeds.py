"""One seed per purpose, a pure function of the study's seed: no global random state anywhere."""

from __future__ import annotations

import hashlib


def repeat_seed(study_seed: int, repeat: int) -> int:
    """The seed of one repetition of a comparison; repetition 0 is the study itself."""
    return seed_for(study_seed, repeat, "repeat") if repeat else study_seed


def seed_for(study_seed: int, trial: int, purpose: str) -> int:
    """Seed in [0, 2**32) for one purpose ("sampler", "shuffle", ...) of one trial.

    Stable across processes, platforms and Python versions (BLAKE2b of the text, not `hash`), so an interrupted study
    draws what the uninterrupted one would have drawn.
    """
    text = f"{study_seed}/{trial}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")
