"""Files of trials in a study's folder: best weights, and the checkpoints that trials resume from.

This module alone says which file a record means, and deletes it. Records hold names, so that a study's folder can be copied or moved.
What is no name that hpsearch gives, or leads out of the folder, is neither found nor deleted, whatever a record says.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path, PurePosixPath

from hpsearch.types import RUN_NAME

RESUMABLE = re.compile(rf"({RUN_NAME.pattern})(?:-epoch-\d+)?\.state")
WEIGHTS = re.compile(rf"({RUN_NAME.pattern})\.safetensors")


class TrialFiles:
    """The files of the trials of one study.

    Args:
        folder: The study's folder; None for a study that has none, whose trials leave no files.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = Path(folder) if folder is not None else None

    def find(self, name: str | None) -> Path | None:
        """Returns the file that a record names by `name`, or by the path that an older hpsearch stored; None when it is not there."""
        path = self.locate(name)
        return path if path is not None and path.is_file() else None

    def delete(self, name: str | None) -> None:
        """Deletes the file that `find` would return; one that is not there, or cannot be deleted, is left alone."""
        path = self.find(name)
        if path is not None:
            with suppress(OSError):
                path.unlink()

    def locate(self, name: str | None) -> Path | None:
        """Returns where a file of that name lies or would lie; None for a name that is not one of ours, or a link out of the folder."""
        if self.folder is None or not name:
            return None
        last = PurePosixPath(name).name
        if not is_trial_file(last):
            return None
        path = self.folder / last
        with suppress(OSError):
            return path if path.resolve().parent == self.folder.resolve() else None
        return None


def is_trial_file(name: str) -> bool:
    """Whether hpsearch gives such a name to the weights of a trial, or to a checkpoint that it resumes from."""
    return bool(RESUMABLE.fullmatch(name) or WEIGHTS.fullmatch(name))
