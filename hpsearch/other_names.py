"""What people call things elsewhere, and what they are called here: hints for unknown keys, options and commands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from hpsearch.errors import nearest

# Words of a study file, without separators and in lower case -> the key here, by its whole path.
KEYS: Mapping[str, str] = {
    **dict.fromkeys(("lr", "lr0", "learningrate", "learnrate", "baselr", "initlr", "eta"), "space.learning_rate"),
    **dict.fromkeys(("bs", "batch", "batchsize", "trainbatchsize", "perdevicetrainbatchsize", "minibatch"), "space.batch_size"),
    **dict.fromkeys(("epoch", "epochs", "nepochs", "numepochs", "numtrainepochs", "maxepochs", "nepoch"), "space.epochs"),
    **dict.fromkeys(("wd", "decay", "weightdecay", "l2"), "space.weight_decay"),
    **dict.fromkeys(("drop", "droprate", "dropout", "dropoutrate", "pdrop"), "space.dropout"),
    **dict.fromkeys(("freeze", "frozen", "frozenlayers", "freezelayers", "unfreeze", "freezebackbone"), "space.frozen_layers"),
    **dict.fromkeys(("opt", "optim", "optimiser", "optimizer"), "recipe.optimizer"),
    **dict.fromkeys(("scheduler", "lrscheduler", "lrschedule", "lrschedulertype", "sched", "schedule"), "recipe.schedule"),
    **dict.fromkeys(("warmup", "warmupepochs", "warmupsteps", "warmupratio"), "recipe.warmup_epochs"),
    **dict.fromkeys(("smoothing", "labelsmoothing", "labelsmoothingfactor"), "recipe.label_smoothing"),
    **dict.fromkeys(("gradclip", "clip", "clipgrad", "maxgradnorm", "gradientclipping", "clipnorm"), "recipe.clip_norm"),
    **dict.fromkeys(("imagesize", "imgsize", "imgsz", "inputsize", "resolution", "size", "cropsize"), "preprocess.size"),
    **dict.fromkeys(("ntrials", "numtrials", "maxtrials", "numsamples", "trial"), "trials"),
    **dict.fromkeys(("gpu", "gpus", "device", "cuda", "ngpus", "accelerator"), "devices"),
    **dict.fromkeys(("jobs", "njobs", "numworkers", "nworkers", "parallel", "concurrency", "maxconcurrenttrials"), "workers"),
    **dict.fromkeys(("metric", "monitor", "direction", "goal", "target"), "objective"),
    **dict.fromkeys(("algorithm", "algo", "search", "searchalg", "method", "strategy", "tuner"), "sampler"),
    **dict.fromkeys(("earlystopping", "stopping"), "pruner"),
    **dict.fromkeys(("dataset", "datadir", "datapath", "traindir", "images", "folder", "path"), "data"),
    **dict.fromkeys(("arch", "architecture", "backbone", "net", "network", "modelname"), "model"),
    **dict.fromkeys(("pretrained", "checkpoint", "ckpt", "init"), "weights"),
    **dict.fromkeys(("randomseed", "randomstate"), "seed"),
    **dict.fromkeys(("maxtime", "timebudget", "timelimit", "budget", "hours"), "timeout"),
    **dict.fromkeys(("parameters", "params", "hyperparameters", "searchspace", "hparams", "sweep", "config"), "space"),
    **dict.fromkeys(("amp", "fp16", "bf16", "halfprecision", "mixedprecision", "dtype"), "precision"),
    **dict.fromkeys(("project", "experiment", "studyname", "runname"), "name"),
    **dict.fromkeys(("valsplit", "validationsplit", "testsize", "valsize"), "split"),
    **dict.fromkeys(("kfold", "folds", "nfolds", "crossvalidation"), "cv"),
}
COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("train", "tune", "optimize", "search", "start", "fit", "study", "sweep", "create"), "`hpsearch run` does that"),
    **dict.fromkeys(("continue", "restart"), "`hpsearch run`, repeated as it was, goes on with a study"),
    **dict.fromkeys(
        ("delete", "rm", "remove", "delete-study", "clean", "reset"),
        "hpsearch deletes no study; `optuna delete-study --storage sqlite:///hpsearch.db --study-name NAME` does, and hpsearch-runs/NAME "
        "is then yours to remove",
    ),
    **dict.fromkeys(("ls", "studies", "status"), "`hpsearch list` does that"),
    **dict.fromkeys(("trials", "results", "result", "history", "log", "logs"), "`hpsearch show` lists the trials of a study"),
    **dict.fromkeys(("dashboard", "mlflow", "view", "browse"), "`hpsearch ui` opens MLflow's page, `hpsearch report` writes one"),
    **dict.fromkeys(("server", "api", "web", "daemon"), "`hpsearch serve` does that"),
    **dict.fromkeys(("init", "new", "demo", "quickstart"), "`hpsearch example FOLDER` writes a study to begin with"),
    **dict.fromkeys(("models", "layers", "blocks"), "`hpsearch model NAME` shows what a model is made of"),
    **dict.fromkeys(("infer", "inference", "classify"), "`hpsearch predict` does that"),
    **dict.fromkeys(("evaluate", "eval", "val", "validate"), "`hpsearch test` measures a winner on the test images"),
    **dict.fromkeys(("data", "inspect", "verify"), "`hpsearch check DATA` looks at images"),
    **dict.fromkeys(("plot", "plots", "figures", "html"), "`hpsearch report` does that"),
    **dict.fromkeys(("save", "download", "package"), "`hpsearch export -o FOLDER` does that"),
    **dict.fromkeys(("kill", "abort"), "Ctrl-C stops a study, `hpsearch stop STUDY TRIAL` one of its trials"),
}


def plain(word: str) -> str:
    """Returns a word in lower case, without separators: `Batch-Size` is `batchsize`."""
    return "".join(letter for letter in word.lower() if letter.isalnum())


def key_for(word: str) -> str | None:
    """Returns the key of a study, by its whole path, that people elsewhere call by this word."""
    return KEYS.get(plain(word.rpartition(".")[2]))


def hint_key(word: str, known: Iterable[str]) -> str:
    """Returns a hint for an unknown key: what it is called here, else the nearest of the known ones."""
    names, key = list(known), key_for(word)
    if key is None or difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.8):
        return nearest(word, names)
    section, _, name = key.partition(".")
    if not name:
        return f"here it is called '{key}'"
    if name in names:
        return f"here it is called '{name}'"
    other = {"space": ", or under recipe where it is fixed", "recipe": ", or under space where it is searched"}.get(section, "")
    return f"here it is '{name}' under {section}{other}"


def hint_option(word: str) -> str | None:
    """Returns a hint for an unknown option of a command that trains; None where nothing is known of it."""
    key = key_for(word.lstrip("-"))
    if key is None:
        return None
    return f"use --set {key}=VALUE" if "." in key or key in ("space", "precision", "split") else f"use --{key}"


def hint_command(word: str, known: Iterable[str]) -> str:
    """Returns a hint for an unknown command."""
    return COMMANDS.get(word.lower()) or nearest(word, known)
