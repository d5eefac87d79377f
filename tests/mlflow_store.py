"""Everything that an MLflow store says of its runs, to compare before and after."""

from mlflow import MlflowClient
from mlflow.entities import ViewType


def files(client, run, folder=None):
    """Path and size of every artifact."""
    for file in client.list_artifacts(run, folder):
        if file.is_dir:
            yield from files(client, run, file.path)
        else:
            yield file.path, file.file_size


def dump(uri, view=ViewType.ALL):
    """A value for each experiment and run: params, all metrics with their histories, tags, times, artifacts, inputs."""
    client, found = MlflowClient(uri), {}
    for experiment in client.search_experiments(view_type=view):
        found[experiment.name] = dict(experiment.tags)
        for run in client.search_runs([experiment.experiment_id], run_view_type=view, max_results=5000):
            history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
            found[run.info.run_id] = {
                "info": (run.info.run_name, run.info.status, run.info.lifecycle_stage, run.info.start_time, run.info.end_time),
                "params": dict(run.data.params),
                "tags": dict(run.data.tags),
                "metrics": {key: [(m.step, m.timestamp, str(m.value)) for m in points] for key, points in history.items()},
                "files": sorted(files(client, run.info.run_id)),
                "inputs": sorted((i.dataset.name, i.dataset.digest, i.dataset.profile) for i in run.inputs.dataset_inputs),
            }
    return found


def by_name(uri):
    """What `dump` has of each active run, by the run's name."""
    return {found["info"][0]: found for found in dump(uri, ViewType.ACTIVE_ONLY).values() if "info" in found}
