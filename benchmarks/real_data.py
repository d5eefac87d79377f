"""What a folder of photographs costs before the first trial, and an epoch of it, beside torchvision's ImageFolder and DataLoader."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import save, spread

PHOTOS, WIDTH, HEIGHT = 1000, 640, 427


def write_photos(folder: Path, count: int) -> None:
    """JPEGs of an ordinary camera's proportions, made of crops of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_image

    pictures = {name: load_sample_image(name) for name in ("china.jpg", "flower.jpg")}
    rng = np.random.default_rng(0)
    for number in range(count):
        name = list(pictures)[number % 2]
        y, x = rng.integers(0, 107), rng.integers(0, 160)
        crop = Image.fromarray(pictures[name][y : y + 320, x : x + 480]).resize((WIDTH, HEIGHT))
        place = folder / name.split(".")[0]
        place.mkdir(parents=True, exist_ok=True)
        crop.save(place / f"{number:05d}.jpg", quality=90)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def run(repeats: int = 3) -> None:
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.models import ResNet18_Weights

    from hpsearch.finetune.data import normalise
    from hpsearch.finetune.images import Preprocessing
    from hpsearch.finetune.pixels import decode_all
    from hpsearch.finetune.prepare import prepare
    from hpsearch.finetune.sources import open_source
    from hpsearch.spec import parse_spec

    torch.set_num_threads(1)
    pre = Preprocessing(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    seconds: dict[str, list[float]] = {}

    def note(what: str, taken: float) -> None:
        seconds.setdefault(what, []).append(taken)

    with tempfile.TemporaryDirectory() as place:
        photos, cache = Path(place) / "photos", Path(place) / "cache"
        os.environ["HPSEARCH_CACHE"] = str(cache)
        write_photos(photos, PHOTOS)
        config = parse_spec({"data": str(photos), "model": "resnet18", "weights": "none"}).resolved() | {"model": None}
        for _ in range(repeats):
            shutil.rmtree(cache, ignore_errors=True)
            note("decode, first time", timed(lambda: decode_all(open_source(str(photos)), pre)))
            note("decode, again", timed(lambda: decode_all(open_source(str(photos)), pre)))
            note("prepare and check, pixels decoded", timed(lambda: prepare(config)))
            note("prepare and check, again", timed(lambda: prepare(config)))
            images = decode_all(open_source(str(photos)), pre).images

            def epoch(images: Any = images) -> None:
                for chosen in torch.randperm(PHOTOS).split(32):
                    normalise(torch.from_numpy(images[chosen.numpy()]), pre.mean, pre.std)

            note("an epoch of batches from the cache, one thread", timed(epoch))
            folder = ImageFolder(str(photos), ResNet18_Weights.DEFAULT.transforms())
            for workers in (0, 2):
                loader = DataLoader(folder, 32, shuffle=True, num_workers=workers)
                note(f"an epoch of ImageFolder and DataLoader, {workers} workers", timed(lambda loader=loader: list(loader)))  # type: ignore[misc]
    for what, values in seconds.items():
        print(f"{what + ':':58}{spread(values, digits=3)}")
    loaders, (ours,) = ([v for k, v in seconds.items() if word in k] for word in ("ImageFolder", "from the cache"))
    ratios = [min(theirs) / cache for *theirs, cache in zip(*loaders, ours, strict=True)]
    print(f"{'the better DataLoader over the cache, an epoch:':58}{spread(ratios, 'times')}")
    save("real_data", {"photos": PHOTOS, "seconds": seconds, "ratios": ratios})
