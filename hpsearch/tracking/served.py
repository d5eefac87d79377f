"""The winner as MLflow loads it: this file goes along with the exported folder and runs without hpsearch.

model = mlflow.pyfunc.load_model("models:/NAME@champion")
model.predict(["photo.jpg"])                  # files, bytes of files, data: URIs, uint8 arrays (H, W) or (H, W, 3)
net = model.unwrap_python_model().net         # the torch module
"""

from __future__ import annotations

import base64
import importlib.util
import io
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel

BATCH = 64  # images at once


class Classifier(PythonModel):
    """Images in, a table of class and probability out, a row for each image; preprocessing included."""

    _skip_type_hint_validation = True  # else MLflow warns whoever loads it: images come in too many forms for one hint

    def load_context(self, context: Any) -> None:
        """Load the network through the folder's own predict.py."""
        folder = Path(context.artifacts["model"])
        spec = importlib.util.spec_from_file_location("exported_predict", folder / "predict.py")
        assert spec is not None
        assert spec.loader is not None
        self.code = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.code)
        self.net, self.config = self.code.load(folder)

    def predict(self, context, model_input, params=None) -> Any:  # type: ignore[no-untyped-def] # noqa: ARG002
        """The most probable class of each image; with params={"all": True} a column for each class as well."""
        images, rows = listed(model_input), []
        for start in range(0, len(images), BATCH):
            pixels = self.code.torch.stack([self.code.pixels(opened(image), self.config) for image in images[start : start + BATCH]])
            rows += self.code.probabilities(self.code.logits(self.net, pixels, self.config), self.config).tolist()
        classes = self.config["classes"]
        best = [max(range(len(classes)), key=row.__getitem__) for row in rows]
        table = {"class": [classes[i] for i in best], "probability": [row[i] for i, row in zip(best, rows, strict=True)]}
        if params and params.get("all"):
            table |= {f"probability of {name}": [row[i] for row in rows] for i, name in enumerate(classes)}
        return pd.DataFrame(table)


def listed(given: Any) -> list[Any]:
    """Images one by one: of a table's first column, a series, a list, an array of one image or of several, or one alone."""
    if isinstance(given, pd.DataFrame):
        given = given.iloc[:, 0]
    if isinstance(given, np.ndarray) and given.dtype != object:
        alone = given.ndim == 2 or (given.ndim == 3 and given.shape[2] in (3, 4))
        return [given] if alone else list(given)
    if isinstance(given, str | bytes | Path):
        return [given]
    return list(given)


def opened(image: Any) -> Any:
    """What Pillow opens: a path, or an image file in memory."""
    if isinstance(image, dict):  # a row of a list of records
        image = next(iter(image.values()))
    if isinstance(image, str) and image.startswith("data:"):
        image = base64.b64decode(image.partition(",")[2])
    if isinstance(image, bytes | bytearray):
        return io.BytesIO(image)
    if isinstance(image, str | Path):
        return image
    from PIL import Image

    values = np.asarray(image)
    if values.dtype != np.uint8:
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
            raise ValueError(f"an array of {values.dtype}: images are whole numbers from 0 to 255, (H, W) or (H, W, 3)")
        values = values.astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values.squeeze()).save(file, "PNG")
    file.seek(0)
    return file


mlflow.models.set_model(Classifier())
