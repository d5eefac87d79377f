"""A folder of images to try things on: the embedded digits as files, with small pretrained weights of a torchvision model."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from hpsearch.errors import FixInput, FixSetup
from hpsearch.finetune.data import digits
from hpsearch.finetune.pretrained import GLYPHNET_FILE
from hpsearch.resources import study_file

WEIGHTS = GLYPHNET_FILE.with_name("shufflenet_v2_x0_5-glyphs.safetensors")
SIDE = 64  # pixels


def write_example(folder: Path) -> Path:
    """Put images/CLASS/*.png and *.jpg, weights and a study file into a new or empty `folder`; the study file's path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FixInput(f"{folder} is not empty: name a new folder")
        images, labels = digits(SIDE)
        for number, (pixels, label) in enumerate(zip(images[:, 0].numpy(), labels.tolist(), strict=True)):
            place = folder / "images" / str(label)
            place.mkdir(parents=True, exist_ok=True)
            if number % 2:
                Image.fromarray(pixels).save(place / f"{number:04d}.png")
            else:
                Image.fromarray(pixels).save(place / f"{number:04d}.jpg", quality=95)
        shutil.copy(WEIGHTS, folder)
        study = study_file(Path("folder"))
        shutil.copy(study, folder)
        return folder / study.name
    except OSError as error:
        raise FixSetup(f"the example cannot be written to {folder}: {error.strerror}; name another folder") from None
