"""The Model Registry: an exported model as a version that loads anywhere, linked to the run that it comes from."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.errors import FixSetup
from hpsearch.tracking.process import masked
from hpsearch.types import Say

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SCRIPT = Path(__file__).with_name("served.py")
CHAMPION = "champion"  # the alias that goes to the newest version
PACKAGES = ("mlflow", "torch", "torchvision", "safetensors", "pillow", "numpy", "pandas")


@dataclass(frozen=True, slots=True)
class Registered:
    """A version in the registry."""

    name: str
    version: str
    uri: str  # for mlflow.pyfunc.load_model
    run: str  # id of the trial's run
    untraced: str = ""  # why it does not load with mlflow.pytorch, if so


def find_run(uri: str, uid: str, trial: int) -> str:
    """Id of the run of a study's trial; "" where MLflow has none."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    every = [e.experiment_id for e in client.search_experiments(max_results=1000)]
    parents = client.search_runs(every, f"tags.`hpsearch.uid` = '{uid}' AND tags.`hpsearch.kind` = 'study'", max_results=1)
    if not parents:
        return ""
    query = f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}' AND tags.`hpsearch.trial` = '{trial}'"
    found = client.search_runs(every, query, max_results=1)
    return str(found[0].info.run_id) if found else ""


def register(uri: str, name: str, folder: Path, graph: Path | None, run: str, scores: Mapping[str, float], say: Say) -> Registered:
    """Register the model that an export left in `folder` as the next version of `name`, and make it the champion.

    `graph` is the same model for `mlflow.pytorch`, `scores` become tags. FixSetup when MLflow refuses.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(uri)
    try:
        with tempfile.TemporaryDirectory() as aside:
            place = Path(aside) / "model"
            say("Making an MLflow model", 0, 0)
            model = client.create_logged_model(
                client.get_run(run).info.experiment_id, name=name, source_run_id=run, model_type="classifier"
            )
            save(folder, place, graph, model.model_id, run)
            say(f"Registering {name}", 0, 0)
            client.log_model_artifacts(model.model_id, str(place))
            client.finalize_logged_model(model.model_id, "READY")
        return make_version(client, name, model.model_id, model.artifact_location, client.get_run(run), folder, scores)
    except (MlflowException, OSError) as error:
        raise FixSetup(f"MLflow could not take the model: {masked(str(error), uri)}") from error


def make_version(
    client: MlflowClient, name: str, model: str, source: str, run: Run, folder: Path, scores: Mapping[str, float]
) -> Registered:
    """The next version of `name`, with its links."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {f"hpsearch.{key}": str(config[key]) for key in ("study", "trial", "model", "data", "data_digest", "objective", "temperature")}
    tags |= {key.replace("/", "_"): f"{value:.6g}" for key, value in scores.items()}
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model, 0)])
    client.set_logged_model_tags(model, tags)
    with_card = (folder / "README.md").read_text(encoding="utf-8")
    made = client.create_model_version(name, source, run.info.run_id, tags, description=with_card[:5000], model_id=model)
    client.set_registered_model_alias(name, CHAMPION, made.version)
    return Registered(name, str(made.version), f"models:/{name}/{made.version}", run.info.run_id)


def save(folder: Path, place: Path, graph: Path | None, model: str, run: str) -> None:
    """The exported folder as an MLflow model: `served.py` as its code, no pickle; `graph` as its other form."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    signature = ModelSignature(
        Schema([ColSpec(AnyType())]),  # type: ignore[no-untyped-call]
        Schema([ColSpec(DataType.string, "class"), ColSpec(DataType.double, "probability")]),
        ParamSchema([ParamSpec("all", DataType.boolean, False)]),
    )
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns of the signature's type "any", which is meant
    mlflow.pyfunc.save_model(
        str(place),
        python_model=str(SCRIPT),
        artifacts={"model": str(folder)},
        signature=signature,
        input_example=example(config),
        pip_requirements=requirements(),
        code_paths=own_code(str(config["model"])),
        mlflow_model=Model(run_id=run, model_id=model),
        metadata={"hpsearch": config["hpsearch"], "study": config["study"], "trial": config["trial"]},
    )
    if graph is not None:  # as mlflow.pytorch.save_model(serialization_format="pt2") would; it takes no graph that is there already
        (place / "data").mkdir()
        shutil.copyfile(graph, place / "data" / "model.pt2")
        made = Model.load(str(place))
        made.add_flavor("pytorch", model_data="data", pytorch_version=torch_version(), code=None)
        made.save(str(place / "MLmodel"))
    for compiled in list(place.rglob("__pycache__")):  # the example has been tried
        shutil.rmtree(compiled)


def torch_version() -> str:
    """As torch itself writes it, with its build."""
    import sys

    return str(sys.modules["torch"].__version__) if "torch" in sys.modules else version("torch")


def example(config: Mapping[str, Any]) -> Any:
    """An image that anybody may see, as a file in a data: URI, which also travels in JSON to a model server."""
    import pandas as pd
    from PIL import Image

    size, file = config["preprocessing"]["size"], io.BytesIO()
    Image.linear_gradient("L").resize((size, size)).save(file, "PNG")
    return pd.DataFrame({"image": [f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"]})


def requirements() -> list[str]:
    """What the model needs, as it is installed here."""
    found = []
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{name}=={version(name).partition('+')[0]}")
    return found


def own_code(model: str) -> list[str] | None:
    """The user's own module, or the package that it is in, for a model that is no name but a function."""
    if ":" not in model:
        return None
    spec = importlib.util.find_spec(model.partition(":")[0].partition(".")[0])
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    return [os.fspath(origin.parent if origin.name == "__init__.py" else origin)]
