"""Before the first trial: pixels into the cache, images into splits, weights on the disk, and what is wrong with the data."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpsearch import __version__
from hpsearch.errors import FixInput, FixSetup
from hpsearch.finetune import checks, models, zoo
from hpsearch.finetune import data as datasets
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.names import choices_of
from hpsearch.finetune.neighbours import Copies, Votes, find_copies, vote
from hpsearch.finetune.pixels import cache_folder, decode_all
from hpsearch.finetune.pretrained import GLYPHNET_FILE
from hpsearch.finetune.sources import open_source
from hpsearch.machine import usable_cores
from hpsearch.seeds import seed_for
from hpsearch.types import DataReport, Finding, Prepared, Say, Value, say_nothing

LABEL_SECONDS = 30.0  # how long features for the label check may take; images beyond that are not judged
FEW = 20  # images below which neighbours say nothing
FEATURE_BATCH = 64


class Ordered:
    """Rows of an array in another order, taken when they are read: the arrays lie in files larger than memory."""

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self.array, self.rows = array, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by position, positions or slice."""
        taken: np.ndarray = self.array[self.rows[index]]
        return taken


@dataclass(frozen=True)
class Loaded:
    """All usable images of a data set in the order of its items, not yet divided."""

    images: Ordered  # (N, C, H, W) uint8
    thumbnails: Ordered  # (N, 32, 32, 3) uint8
    digests: np.ndarray  # (N,)
    statistics: np.ndarray | None
    labels: np.ndarray  # (N,)
    names: list[str]
    given: list[str | None]  # split of each, where the data says so
    classes: tuple[str, ...]
    content: str  # digest of the pixels in this order
    file: Path | None = None  # where the images lie
    bad: Sequence[tuple[str, str]] = ()
    special: Mapping[str, Sequence[str]] | None = None
    notes: Sequence[str] = ()
    empty_classes: Sequence[str] = ()
    remarks: Sequence[Finding] = ()


def prepare(config: Mapping[str, Any], say: Say = say_nothing, need_weights: bool = True) -> Prepared:
    """Load, divide and check a study's data, and have its weights at hand; `config` is a resolved study, and `folder`.

    The folder gets the index from which workers read, unless the data is embedded. `model` may be None: the data alone is
    checked. Nothing is refused here: what the report calls an error is the caller's to raise. Raises FixInput or FixSetup for
    what is no data or no model at all, and for weights out of reach unless they are not needed. Of several models each gets pixels of
    its own; the data is divided and checked with those of the default recipe's.
    """
    torch.set_num_threads(max(1, usable_cores() // 2))  # others are starting on the same cores
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = config["model"]
    overrides = config.get("preprocess")
    pre = zoo.changed(zoo.RGB, overrides) if name is None else models.preprocessing(name, config["weights"], overrides)
    loaded = load(config, pre, say)
    if len(loaded.labels) == 0:
        raise FixInput(f"none of the {len(loaded.bad):,} images in {config['data']} can be used: {told(loaded.bad)}")
    copies = remembered_copies(loaded, device, say)
    parts, problem = divided(loaded, copies, config)
    if config.get("cv") and config.get("folder") and problem is None:
        held = np.concatenate([parts["train"], parts["val"]])
        datasets.check_folds(loaded.labels[held], loaded.classes, config["cv"]["times"], copies.groups[held])
    built, missing = (None, "") if name is None else build(name, config, loaded, need_weights, say)
    asked = [config.get(k) for k in ("data", "model", "objective", "bad_files", "weights", "preprocess", "split", "seed")]
    weights = digest_tensors(built.initial) if built else ""
    seen = [loaded.content, loaded.labels.tolist(), loaded.names, loaded.given, loaded.classes]
    beside = [loaded.bad, loaded.special, loaded.notes, loaded.empty_classes, loaded.remarks, missing]
    key = digest_of(__version__, asked, weights, seen, beside)
    report = remembered(
        cache_folder() / "checks" / f"{key}.json", lambda: look(loaded, copies, parts, problem, config, built, missing, pre, device, say)
    )
    names = choices_of(config) if name is not None else ()
    index, digest = ("", "") if problem else indexed(config, datasets.index_name(name, len(names)), loaded, copies, parts)
    if built is None:
        return Prepared(0, report, index, digest, "")
    blocks, reason = len(built.model.blocks), built.model.reason
    first = Prepared(blocks, report, index, digest, built.matched.text(), weights, reason, files=files(built, name))
    if len(names) < 2 or report.refused:
        return first
    each = {names[0]: replace(first, models={names[0]: described(built)})}
    for other in names[1:]:
        each[other] = another(other, config, loaded, copies, parts, report, need_weights, say)
    return together(each)


def build(name: str, config: Mapping[str, Any], loaded: Loaded, need_weights: bool, say: Say) -> tuple[models.Built | None, str]:
    """A model with its weights, or why they cannot be had where they are not needed."""
    say(f"Loading {name}", 0, 0)
    try:
        seed = seed_for(config["seed"], 0, "head")
        classes, overrides = len(loaded.classes), config.get("preprocess")
        return models.build(name, classes, config["weights"], seed, overrides, lambda text: say(text, 0, 0)), ""
    except FixSetup as error:
        if need_weights:
            raise
        return None, str(error)


def indexed(config: Mapping[str, Any], name: str, loaded: Loaded, copies: Copies, parts: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """The index of a model's images in the study's folder, "" for the embedded ones; and the digest of images, labels and splits."""
    digest = datasets.data_digest(loaded.content, loaded.labels, parts, loaded.classes)
    if loaded.file is None or not config.get("folder"):
        return "", digest
    index = Path(config["folder"]) / name
    shape, rows = loaded.images.array.shape, {name: loaded.images.rows[part] for name, part in parts.items()}
    labels = {name: loaded.labels[part] for name, part in parts.items()}
    groups = np.concatenate([copies.groups[parts[name]] for name in ("train", "val")])
    names = {part: [loaded.names[i] for i in parts[part]] for part in ("val", "test")}
    datasets.save_index(index, loaded.file, shape, loaded.classes, rows, labels, digest, groups, names)
    return str(index), digest


# ---------------------------------------------------------------- further models


def another(
    name: str,
    config: Mapping[str, Any],
    first: Loaded,
    copies: Copies,
    parts: Mapping[str, np.ndarray],
    report: DataReport,
    need_weights: bool,
    say: Say,
) -> Prepared:
    """A further model on the same division of the same images; FixInput when it has not the same."""
    loaded = load(config, models.preprocessing(name, config["weights"], config.get("preprocess")), say)
    if (loaded.names, loaded.classes, loaded.labels.tolist()) != (first.names, first.classes, first.labels.tolist()):
        raise FixInput(
            f"of {config['data']} {name} can use other images than {config['model']}, so their trials could not be compared: remove the "
            f"files that cannot be used ({told([*first.bad, *loaded.bad])}), or leave {name} out of space.model"
        )
    index, digest = indexed(config, datasets.index_name(name, 2), loaded, copies, parts)
    built, _ = build(name, config, loaded, need_weights, say)
    if built is None:
        return Prepared(0, report, index, digest, "")
    weights = digest_tensors(built.initial)
    blocks, reason = len(built.model.blocks), built.model.reason
    models_too, file = {name: described(built)}, files(built, name)
    return Prepared(blocks, report, index, digest, built.matched.text(), weights, reason, models=models_too, files=file)


def files(built: models.Built, name: str) -> dict[str, str]:
    """Where a model's weights were read from; those that come with hpsearch are everywhere."""
    return {} if built.file in (None, GLYPHNET_FILE) else {name: str(built.file)}


def described(built: models.Built) -> dict[str, Value]:
    """What a study of several models says of one."""
    return {
        "parameters": sum(p.numel() for p in built.model.parameters()),
        "blocks": len(built.model.blocks),
        "image_size": built.preprocessing.size,
        "weights": built.matched.text(),
    }


def together(each: Mapping[str, Prepared]) -> Prepared:
    """What several models come to; the first is the default recipe's."""
    first = next(iter(each.values()))
    return replace(
        first,
        blocks=max(one.blocks for one in each.values()),
        digest=digest_of(*(one.digest for one in each.values())),
        weights_digest=digest_of(*(one.weights_digest for one in each.values())),
        unshared="; ".join(f"{name}: {one.unshared}" for name, one in each.items() if one.unshared),
        indexes={name: one.index for name, one in each.items()},
        models={name: about for one in each.values() for name, about in one.models.items()},
        files={name: file for one in each.values() for name, file in one.files.items()},
    )


# ---------------------------------------------------------------- loading


def load(config: Mapping[str, Any], pre: Preprocessing, say: Say) -> Loaded:
    """A study's images at the size that a model wants."""
    return load_digits(pre) if config["data"] == "digits" else load_images(config, pre, say)


def load_digits(pre: Preprocessing) -> Loaded:
    """The embedded digits, gray or as three equal channels."""
    images, labels, content = datasets.embedded_images(pre)
    small = datasets.digits(32)[0].expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    digests = np.array([hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest() for image in images[:, 0].numpy()])
    every = np.arange(len(labels))
    names: list[str] = [f"digits/{i}" for i in every]
    given: list[str | None] = [None] * len(every)
    return Loaded(Ordered(images.numpy(), every), Ordered(small, every), digests, None, labels, names, given, datasets.DIGITS, content)


def load_images(config: Mapping[str, Any], pre: Preprocessing, say: Say) -> Loaded:
    """A folder, manifest, torchvision data set or the user's own function, through the pixel cache."""
    say(f"Reading {config['data']}", 0, 0)
    root = config.get("data_root")
    source = open_source(config["data"], Path(root) if root else None, say)
    decoded = decode_all(source, pre, progress=say)
    usable = np.flatnonzero(decoded.rows >= 0)
    rows, items = decoded.rows[usable], [source.items[i] for i in usable]
    digests = decoded.digests[rows]
    return Loaded(
        Ordered(decoded.images, rows),
        Ordered(decoded.thumbnails, rows),
        digests,
        decoded.statistics[rows],
        np.array([item.label for item in items], dtype=np.int64),
        [item.name for item in items],
        [item.split for item in items],
        source.classes,
        digest_of(decoded.content, hashlib.blake2b(digests.tobytes()).hexdigest()),
        decoded.folder / "images.u8",
        decoded.bad,
        decoded.special,
        source.notes,
        source.empty_classes,
        source.remarks,
    )


def divided(loaded: Loaded, copies: Copies, config: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], str | None]:
    """Rows of each split; when classes are too small everything is training, and the reason comes with it."""
    try:
        return datasets.divide(loaded.labels, loaded.classes, config["split"], config["seed"], loaded.given, copies.groups), None
    except FixInput as error:
        nothing = np.zeros(0, dtype=np.int64)
        return {"train": np.arange(len(loaded.labels)), "val": nothing, "test": nothing}, str(error)


# ---------------------------------------------------------------- checking


def look(
    loaded: Loaded,
    copies: Copies,
    parts: Mapping[str, np.ndarray],
    problem: str | None,
    config: Mapping[str, Any],
    built: models.Built | None,
    missing: str,
    pre: Preprocessing,
    device: torch.device,
    say: Say,
) -> DataReport:
    """The findings."""
    gathered = checks.Gathered(
        str(config["data"]),
        loaded.classes,
        str(config["objective"]),
        loaded.names,
        loaded.labels,
        parts,
        loaded.images,
        loaded.statistics,
        copies,
        loaded.bad,
        float(config["bad_files"]),
        loaded.special or {},
        loaded.notes,
        loaded.empty_classes,
        loaded.remarks,
    )
    votes, voters, why_not = doubts(loaded, copies, config, built, pre, device, say)
    why_not = missing or why_not
    report = checks.report(gathered, votes, voters, why_not)
    extra = [Finding("too-small", "error", problem)] if problem else []
    if config["objective"] == "top5" and len(loaded.classes) <= 5:
        text = f"The objective top5 says nothing with {len(loaded.classes)} classes: choose accuracy, or another."
        extra.append(Finding("objective", "error", text))
    kept = tuple(f for f in report.findings if not (problem and f.kind in ("no-validation", "no-test")))  # they follow from it
    return replace(report, findings=(*extra, *kept))


def doubts(
    loaded: Loaded,
    copies: Copies,
    config: Mapping[str, Any],
    built: models.Built | None,
    pre: Preprocessing,
    device: torch.device,
    say: Say,
) -> tuple[Votes | None, np.ndarray, str]:
    """What the neighbours in the frozen features say of the labels: votes, on which rows, or why there are none."""
    nobody = np.zeros(0, dtype=np.int64)
    if built is None:
        return None, nobody, "that takes the features of a pretrained model; name one with --model"
    if not built.matched.loaded:
        return None, nobody, "nothing says that this network is pretrained, and only then can its features judge them"
    order = np.random.default_rng(seed_for(config["seed"], 0, "labels")).permutation(len(loaded.labels))
    features = some_features(built.model.to(device), loaded, order, pre, device, say)
    rows = np.sort(order[: len(features)])
    if len(rows) < FEW:
        return None, nobody, f"{len(rows)} images are too few"
    features = features[torch.from_numpy(np.argsort(order[: len(features)]))]
    return vote(features.to(device), loaded.labels[rows], copies.groups[rows]), rows, ""


def some_features(
    model: models.FineTuneModel, loaded: Loaded, order: np.ndarray, pre: Preprocessing, device: torch.device, say: Say
) -> Tensor:
    """(n, D) features of the first n images in `order`, as many as LABEL_SECONDS allow."""
    model.eval()
    out, begun = [], time.monotonic()
    for start in range(0, len(order), FEATURE_BATCH):
        rows = np.sort(order[start : start + FEATURE_BATCH])
        back = np.argsort(np.argsort(order[start : start + FEATURE_BATCH]))  # files are read in order, features kept in `order`
        pixels = torch.from_numpy(loaded.images[rows]).to(device)
        with torch.inference_mode():
            out.append(model.features(datasets.normalise(pixels, pre.mean, pre.std)).float().cpu()[torch.from_numpy(back)])
        say("Looking at labels", min(start + FEATURE_BATCH, len(order)), len(order))
        if time.monotonic() - begun > LABEL_SECONDS:
            break
    return torch.cat(out)


# ---------------------------------------------------------------- remembering


def remembered_copies(loaded: Loaded, device: torch.device, say: Say) -> Copies:
    """Copies among the images, from the cache when these pixels have been searched before."""
    path = cache_folder() / "checks" / f"copies-{digest_of(__version__, loaded.content)}.json"
    try:
        stored = json.loads(path.read_text())
        exact, near = (tuple((int(a), int(b)) for a, b in stored[key]) for key in ("exact", "near"))
        groups = np.array(stored["groups"], dtype=np.int64)
        if len(groups) == len(loaded.labels):
            return Copies(exact, near, groups, int(stored["searched"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    copies = find_copies(loaded.thumbnails, loaded.digests, device, say)
    write_json(path, {"exact": copies.exact, "near": copies.near, "groups": copies.groups.tolist(), "searched": copies.searched})
    return copies


def remembered(path: Path, build: Callable[[], DataReport]) -> DataReport:
    """A report from the cache, or built and kept there."""
    try:
        return DataReport.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        report = build()
        write_json(path, asdict(report))
        return report


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Keep values in the cache; a cache that cannot be written is no reason to stop."""
    aside = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(values))
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)


def digest_tensors(state: Mapping[str, Tensor]) -> str:
    """BLAKE2b of names and values of tensors, in hexadecimal (16 characters)."""
    h = hashlib.blake2b(digest_size=8)
    for name, tensor in state.items():
        h.update(name.encode())
        h.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


def digest_of(*values: Any) -> str:
    """BLAKE2b of anything that has a stable repr, in hexadecimal (16 characters)."""
    return hashlib.blake2b(repr(values).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def told(bad: Sequence[tuple[str, str]]) -> str:
    """The first few files that cannot be used."""
    return "; ".join(f"{name}: {reason}" for name, reason in bad[:3])
