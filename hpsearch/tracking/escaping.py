"""MLflow's client with every text escaped that its stores refuse or a terminal would obey, whoever made the study that is mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from hpsearch.core.text import harmless


class EscapingClient(MlflowClient):
    """Writes as `MlflowClient` does; the calls that `Mirror` makes are those that are covered."""

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: dict[str, Any] | None = None, **more: Any) -> str:
        """Creates an experiment; see `MlflowClient.create_experiment`."""
        return str(super().create_experiment(harmless(name), artifact_location, tags=escape_tags(tags), **more))

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Run:
        """Creates a run; see `MlflowClient.create_run`."""
        return super().create_run(experiment_id, start_time, escape_tags(tags), harmless(run_name) if run_name else None)

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> Any:
        """Sets a tag; see `MlflowClient.set_tag`."""
        return super().set_tag(run_id, harmless(key), harmless(str(value)), synchronous)

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> Any:
        """Logs metrics, parameters and tags in one request; see `MlflowClient.log_batch`."""
        params = [Param(harmless(param.key), harmless(param.value)) for param in params]
        tags = [RunTag(harmless(tag.key), harmless(tag.value)) for tag in tags]
        return super().log_batch(run_id, metrics, params, tags, synchronous)


def escape_tags(tags: dict[str, Any] | None) -> dict[str, Any]:
    """Returns tags with their texts escaped."""
    return {harmless(key): harmless(str(value)) for key, value in (tags or {}).items()}
