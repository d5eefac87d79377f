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


def disagreements(uri, records, times):
    """Where a study's trial runs differ from the storage's records: there once, states, params, every value of every epoch.

    `times`: (trial, epoch) -> when it was reached, seconds since the epoch; what MLflow says of it is to be that to the millisecond.
    """
    client, found = MlflowClient(uri), []
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`hpsearch.kind` = 'trial'", max_results=5000)
    numbers = sorted(int(run.data.tags["hpsearch.trial"]) for run in runs)
    if numbers != [r.number for r in records]:
        found.append(f"runs {numbers}")
    by_number = {int(run.data.tags["hpsearch.trial"]): run for run in runs}
    for record in records:
        if (run := by_number.get(record.number)) is None:
            continue
        is_now = (run.data.tags.get("hpsearch.state"), run.info.status, run.info.end_time, dict(run.data.params))
        should = (record.status.value, "FINISHED", int(1000 * record.ended), {key: str(value) for key, value in record.params.items()})
        found += [] if is_now == should else [f"{record.name}: {is_now} for {should}"]
        if abs(run.info.start_time - 1000 * record.started) > 1000:
            found.append(f"{record.name} began at {run.info.start_time} for {1000 * record.started}")
        for key in {key for row in record.curve for key in row} - {"epoch"}:
            is_now = [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, key)]
            should = [(row["epoch"], row[key], int(1000 * times[record.number, row["epoch"]])) for row in record.curve]
            found += [] if sorted(is_now) == should else [f"{record.name} {key}: {is_now} for {should}"]
    return found
