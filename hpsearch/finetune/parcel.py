"""A study's files on a machine that may lack them: fetched from the orchestrator's into the cache, once a machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import torch

from hpsearch.errors import FixSetup
from hpsearch.finetune import data as datasets
from hpsearch.finetune import shelf
from hpsearch.finetune.names import file_and_part, is_file
from hpsearch.finetune.sources import cache_folder
from hpsearch.machine import pulse

Fetch: TypeAlias = Callable[[str], Iterator[bytes]]
"""A file of the orchestrator's machine, in chunks."""


def unpacked(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A kernel's configuration with its files on this machine; as it is, without `fetch`.

    What has its content in its name (decoded images, weights as torchvision publishes them) is fetched only where it is not there;
    indexes and the user's own weights always are, since a file of that name may be another.
    """
    if config.get("fetch") is None:
        return config
    found = {key: value for key, value in config.items() if key != "fetch"}
    fetch, folder, brought = config["fetch"], Path(config["folder"]), dict[str, str]()

    def index(path: str) -> str:
        if path and path not in brought:
            brought[path] = str(local_index(path, folder, fetch))
        return brought.get(path, "")

    if found.get("index"):
        found["index"] = index(found["index"])
    found |= {"indexes": {model: index(path) for model, path in found["indexes"].items()}} if found.get("indexes") else {}
    own = is_file(str(found["weights"]))
    files = {model: str(local_weights(path, own, folder, fetch)) for model, path in found.get("files", {}).items()}
    part = file_and_part(str(found["weights"]))[1]
    here = {model: f"{path}#{part}" if part else path for model, path in files.items()}
    return found | {"weights_here": here if own else {}}  # torchvision's are found by name


def local_index(path: str, folder: Path, fetch: Fetch) -> Path:
    """An index with its images in this machine's cache."""
    here = folder / PurePath(path).name
    write(here, fetch(path))
    there = datasets.images_of(here)
    datasets.moved(here, local_images(PurePath(there).parent, fetch) / PurePath(there).name)
    return here


def local_images(there: PurePath, fetch: Fetch) -> Path:
    """The entry of the cache of that name, whose files are in the folder `there` of the orchestrator's machine."""
    root, key = cache_folder(), f"fetch-{there.name}"
    here = shelf.place(root, there.name)
    with shelf.opened(root), shelf.held(root, key, lambda: pulse("Waiting for the images, which another worker fetches")):
        if not shelf.sound(here):
            aside = root / "images" / f"{key}.tmp"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for name in shelf.FILES:
                write(aside / name, fetch(str(there / name)))
            if not shelf.sound(aside):
                raise FixSetup(f"the decoded images in {there} changed while they were fetched: repeat the command")
            if here.exists():
                shelf.remove(root, here)
            aside.rename(here)
        shelf.use(here)
    return here


def local_weights(path: str, own: bool, folder: Path, fetch: Fetch) -> Path:
    """A file of weights: the user's `own` in the worker's folder, torchvision's where torch looks for it."""
    name = PurePath(path).name
    here = folder / name if own else Path(torch.hub.get_dir(), "checkpoints", name)
    if own:
        write(here, fetch(path))
        return here
    root = cache_folder()
    with shelf.opened(root), shelf.held(root, f"fetch-{name}", lambda: pulse("Waiting for weights, which another worker fetches")):
        if not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            with shelf.replacing(here) as file:
                for chunk in fetch(path):
                    file.write(chunk)
    return here


def write(path: Path, chunks: Iterator[bytes]) -> None:
    """Write a file that nobody else looks at."""
    with suppress(FileNotFoundError):
        path.unlink()
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
