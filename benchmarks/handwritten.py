"""The loop that users glue by hand, in the style of Optuna's PyTorch example, over a given list of trials.

Data set and DataLoaders are built inside the objective, the study lives in SQLite, MLflow gets one call per metric.
Network, weights, data, optimiser, schedule, epochs and validation are those of hpsearch's trials, so that the loops
differ and the work does not: every image is seen as often, validation runs after every epoch, no trial is pruned.
"""

import json
import sys
import time
from pathlib import Path


def main(folder: str, threads: int, trials: list[dict[str, float]]) -> None:
    import mlflow
    import optuna
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    from hpsearch.finetune import data, models
    from hpsearch.finetune.optim import warmup_cosine

    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("handwritten")
    pre = models.preprocessing("glyphnet", "DEFAULT", {})

    def objective(trial: optuna.Trial) -> float:
        params = trials[trial.number]
        for name, value in params.items():
            trial.suggest_float(name, value, value)
        digits = data.embedded(pre, {"train_per_class": 5, "val": 400, "test": None}, 0)
        sets = {
            n: TensorDataset(data.normalise(s.pixels(), pre.mean, pre.std), s.labels)
            for n, s in (("train", digits.train), ("val", digits.val))
        }
        train = DataLoader(sets["train"], batch_size=int(params["batch_size"]), shuffle=True)
        val = DataLoader(sets["val"], batch_size=128)
        model = models.build("glyphnet", 10, "DEFAULT", 0).model
        model.dropout.rate = torch.tensor(params["dropout"])
        k, epochs = int(params["frozen_layers"]), int(params["epochs"])
        optimiser = torch.optim.AdamW(model.freeze(k), lr=params["learning_rate"], weight_decay=params["weight_decay"])
        steps = epochs * len(train)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmup_cosine(step, steps, len(train)))
        best = float("inf")
        with mlflow.start_run(run_name=f"trial-{trial.number}"):
            mlflow.log_params(params)
            for epoch in range(epochs):
                model.freeze(k)
                total = 0.0
                for x, y in train:
                    optimiser.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimiser.step()
                    schedule.step()
                    total += loss.item()
                model.eval()
                losses, right = 0.0, 0
                with torch.no_grad():
                    for x, y in val:
                        logits = model(x)
                        losses += F.cross_entropy(logits, y, reduction="sum").item()
                        right += (logits.argmax(1) == y).sum().item()
                val_loss = losses / len(sets["val"])
                best = min(best, val_loss)
                mlflow.log_metric("train_loss", total / len(train), step=epoch)
                mlflow.log_metric("val_loss", val_loss, step=epoch)
                mlflow.log_metric("accuracy", right / len(sets["val"]), step=epoch)
                trial.report(val_loss, epoch)
        return best

    study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db", study_name="handwritten")
    begun = time.monotonic()
    study.optimize(objective, n_trials=len(trials))
    seconds = time.monotonic() - begun
    result = {"seconds": seconds, "values": [t.value for t in study.trials]}
    (Path(folder) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
