"""Images larger than memory: they stay in their file, and a trial reads what it needs."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpsearch.finetune import data
from hpsearch.machine import total_memory

STREAM = """
import sys
from pathlib import Path
import torch
from hpsearch.finetune import data, models
from hpsearch.finetune.context import DeviceContext
from hpsearch.finetune.features import Features

def private():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) // 1024

torch.set_num_threads(1)
built = models.build("squeezenet1_1", 2, "none", 0, {"size": 224})
found = data.from_index(Path(sys.argv[1]))
features = Features(built.model, found, built.preprocessing, DeviceContext("cpu"), budget=100 << 20)
train = features.train(0)
assert not train.kept
before = private()
total = sum(float(features.front(train.read(torch.arange(i, i + 16)), 0).sum()) for i in range(0, 2560, 16))
print(private() - before, total)
"""


def index(folder, images, side=224):
    """An index over a file of zeros, which takes no room on the disk."""
    shape = (images, 3, side, side)
    with (folder / "images.u8").open("wb") as file:
        file.truncate(images * 3 * side * side)
    rows = np.arange(images)
    parts = {"train": rows[: images - 2], "val": rows[-2:-1], "test": rows[-1:]}
    labels = {name: part % 2 for name, part in parts.items()}
    data.save_index(folder / "split.npz", folder / "images.u8", shape, ["a", "b"], parts, labels, "zeros")
    return folder / "split.npz"


def test_a_file_twice_as_large_as_memory_is_opened_and_read(tmp_path):
    images = 2 * total_memory() // (3 * 224 * 224)
    found = data.from_index(index(tmp_path, images))
    assert len(found.train) == images - 2
    assert found.train.pixels(torch.tensor([0, images // 2, images - 3])).shape == (3, 3, 224, 224)


@pytest.mark.process
def test_reading_all_images_takes_no_memory_of_the_process(tmp_path):
    path = index(tmp_path, 2562)  # 386 MB of pixels, 1.5 GB as floats
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(path)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    grown, total = done.stdout.split()
    assert int(grown) < 64  # MB; a batch of 16 is 10 MB of floats
    assert float(total) != 0
