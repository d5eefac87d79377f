"""What finished checkpoints are worth: each measured on a split as the kernel measures, and on the task it was pretrained on.

Notation: N images of the split, K classes, D features before the head. Networks are looked at one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from hpsearch.errors import FixInput, FixSetup
from hpsearch.finetune import checks, metrics, models, zoo
from hpsearch.finetune import data as datasets
from hpsearch.finetune.blocks import FineTuneModel, flat, restore
from hpsearch.finetune.context import DeviceContext
from hpsearch.finetune.data import Data, Split
from hpsearch.finetune.export import preprocessing
from hpsearch.finetune.features import Features
from hpsearch.finetune.images import Preprocessing
from hpsearch.finetune.kernel import context_of
from hpsearch.finetune.memory import attempt
from hpsearch.finetune.names import is_file
from hpsearch.finetune.pretrained import GLYPHNET_FILE
from hpsearch.finetune.state import read_about
from hpsearch.types import Example, Forgetting, Judged, Say, Verdict, say_nothing

MISTAKES = 12  # described
RIDGE = 1e-3  # of the number of images: a head fitted by least squares
WORDS = datasets.SPLIT_WORDS


def judge(config: Mapping[str, Any], say: Say = say_nothing) -> Verdict:
    """Measure checkpoints on a split; `config` is the kernel's, and what to judge.

    checkpoints: [name, path] of each; judge_split: "test" or "val"; mistakes: how many of the first checkpoint's to describe.
    Raises FixInput for a split without images and for data that is not the checkpoint's, FixSetup for a file that is no checkpoint.
    """
    split, wanted = str(config["judge_split"]), [(str(name), Path(path)) for name, path in config["checkpoints"]]
    if split not in ("val", "test"):
        raise FixInput(f"there is no split '{split}': judge val or test")
    context, opened, judged = context_of(config), Opened(config), []
    for i, (name, path) in enumerate(wanted):
        say(f"Measuring {name} on the {WORDS[split]} images", i, len(wanted))
        shown = 0 if i else int(config.get("mistakes", MISTAKES))
        judged.append(measure(name, path, read_about(path), split, opened, context, shown))
    return Verdict(split, tuple(judged))


def measure(name: str, path: Path, about: Mapping[str, Any], split: str, opened: Opened, context: DeviceContext, shown: int) -> Judged:
    """One checkpoint on one split; the network is let go of before the next."""
    data, pre = opened.data(path, about), preprocessing(about)
    part = data.splits()[split]
    if not len(part):
        raise FixInput(f"{about['data']} has no {WORDS[split]} images: set split.{split}, or add a {split} folder, and run a new study")
    state = tensors(path)
    logits = scores(loaded(path, about, pre, state, context), data, part, pre, context)
    labels = part.labels.to(logits.device)
    found, confusion = metrics.evaluate(logits, labels)
    return Judged(
        name,
        len(part),
        found.pop("loss"),
        found,
        metrics.per_class(confusion),
        tuple(tuple(int(n) for n in row) for row in confusion.tolist()),
        forgetting(about, state, context, opened),
        mistakes(logits, labels, part, data.classes, opened.names(about, split, part), shown),
    )


# ---------------------------------------------------------------- the data and the network


class Opened:
    """Data that was opened, and what is asked for more than once."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.known: dict[tuple[str, Preprocessing, tuple[int, ...]], Data] = {}
        self.source: dict[Path, Source | None] = {}

    def index(self, model: str) -> str:
        """The file that says where a model's images are; "" for embedded data."""
        return str(self.config.get("indexes", {}).get(model) or self.config.get("index") or "")

    def data(self, path: Path, about: Mapping[str, Any]) -> Data:
        """The images that a checkpoint was trained with, divided as they were then; FixInput when they are not the same any more."""
        pre, fold = preprocessing(about), tuple(about.get("fold") or ())
        key = (about["model"], pre, fold)
        if key not in self.known:
            index, seed = self.index(about["model"]), int(self.config["seed"])
            try:
                data = datasets.from_index(Path(index)) if index else datasets.embedded(pre, self.config["split"], seed)
            except (OSError, ValueError, KeyError) as error:
                raise FixInput(f"the decoded images are gone ({error}): run the study again, which decodes them anew") from None
            self.known[key] = datasets.fold(data, fold[0], fold[1], seed) if fold else data
        if self.known[key].digest != about["data_digest"]:
            raise FixInput(
                f"the images, labels or splits of {self.config['data']} are not those that {path} was trained with "
                f"({about['data']}, digest {about['data_digest']}): bring the data back, or run a new study"
            )
        return self.known[key]

    def names(self, about: Mapping[str, Any], split: str, part: Split) -> Sequence[str]:
        """What the images of a split are called."""
        index = self.index(about["model"])
        if not index:
            return [f"{about['data']}/{row}" for row in part.rows.tolist()]
        names = [] if about.get("fold") and split == "val" else datasets.names_in(Path(index), split)
        return names or [f"{split}/{i}" for i in range(len(part))]


def tensors(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FixSetup(f"{path} cannot be read ({error}): bring back the file that the study wrote") from None


def loaded(path: Path, about: Mapping[str, Any], pre: Preprocessing, state: Mapping[str, Tensor], context: DeviceContext) -> FineTuneModel:
    """The checkpoint's network on the device, in evaluation mode; FixSetup when its weights are of another."""
    model = models.build(about["model"], len(about["classes"]), "none", 0, asdict(pre)).model
    own = {name: t.shape for name, t in model.net.state_dict().items()}
    if own != {name: t.shape for name, t in state.items()}:
        raise FixSetup(f"{path} does not fit {about['model']} as it is built here: bring back the code or the file that the study had")
    model.restore(state)
    return model.to(context.device).to(memory_format=torch.channels_last).eval()


def scores(model: FineTuneModel, data: Data, part: Split, pre: Preprocessing, context: DeviceContext) -> Tensor:
    """(N, K) float32 logits of a split, in the kernel's batches and precision: on a CPU its very numbers."""
    nothing = Split(part.images, part.rows[:0], part.labels[:0])
    features = Features(model, replace(data, train=nothing, val=part), pre, context, budget=0)
    reader = features.passing("val")

    def whole() -> Tensor:
        out = []
        for positions in features.batches(reader):
            x = features.front(reader.read(positions), 0)
            with torch.no_grad(), context.autocast():
                out.append(model.suffix(x, 0))
        return torch.cat(out).float()

    while (found := attempt(whole)) is None:
        features.halve()
    return found


# ---------------------------------------------------------------- mistakes


def mistakes(logits: Tensor, labels: Tensor, part: Split, classes: Sequence[str], names: Sequence[str], shown: int) -> tuple[Example, ...]:
    """The images put into a wrong class with the most confidence, the surest first; of equals, the earlier one."""
    sure, predicted = logits.double().softmax(1).max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    order = wrong[sure[wrong].argsort(descending=True, stable=True)][:shown].tolist()
    return tuple(
        Example(
            (names[i],),
            f"{classes[int(labels[i])]} taken for {classes[int(predicted[i])]} ({100 * float(sure[i]):.0f} %)",
            (checks.preview(part.pixels(torch.tensor([i]))[0].numpy()),),
        )
        for i in order
    )


# ---------------------------------------------------------------- forgetting


@dataclass(frozen=True)
class Source:
    """The task that weights were pretrained on: held-out images, normalised, the network that solves it, and how well it does."""

    inputs: Tensor
    labels: Tensor
    model: FineTuneModel
    accuracy: float
    refitted: float


def forgetting(about: Mapping[str, Any], state: Mapping[str, Tensor], context: DeviceContext, opened: Opened) -> Forgetting | None:
    """What is left of the source task under its own head on the fine-tuned body; None where nobody knows that task, or never knew it.

    The body has the fine-tuned BatchNorm statistics. A second pair of numbers allows for a new head: what the features still tell.
    """
    path = source_file(about)
    if path is None:
        return None
    if path not in opened.source:
        opened.source[path] = source(path, about["model"], context)
    known = opened.source[path]
    if known is None:
        return None
    model, own = known.model, known.model.net.state_dict()
    before = {name: t.clone() for name, t in own.items()}
    body = {name: t for name, t in state.items() if not name.startswith(f"{model.cuts.head}.")}
    if any(name not in own or own[name].shape != t.shape for name, t in body.items()):
        return None  # built for another size of image
    restore(model.net, body)
    after, refitted = solves(model, known.inputs, known.labels)
    restore(model.net, before)
    return Forgetting("rendered characters", len(known.labels), known.accuracy, after, known.refitted, refitted)


def source_file(about: Mapping[str, Any]) -> Path | None:
    """The file of a checkpoint's pretrained weights, when it says that they were made by `glyphs`, of which the source task is known."""
    weights = str(about["weights"])
    if about.get("scratch"):
        return None
    path = Path(weights).expanduser() if is_file(weights) else GLYPHNET_FILE
    embedded = about["model"] == "glyphnet" and weights.lower() == "default"
    if not (embedded or is_file(weights)) or path.suffix != ".safetensors":
        return None
    facts = facts_of(path)
    return path if "source_accuracy" in facts and facts.get("model", "glyphnet") == about["model"] else None


def facts_of(path: Path) -> dict[str, Any]:
    """What `glyphs` wrote beside weights; empty for a file of another kind, or none."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("hpsearch", "{}"))
    except (OSError, SafetensorError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def source(path: Path, name: str, context: DeviceContext) -> Source | None:
    """The source task and the pretrained network with its own head; None without the fonts to render it."""
    try:
        from hpsearch.finetune import glyphs
    except ImportError:  # matplotlib comes with MLflow
        return None
    size = facts_of(path).get("size", zoo.GLYPHNET.size)
    built = models.build(name, len(glyphs.CLASSES), "none", 0, {"size": size})
    built.model.restore(tensors(path))
    model = built.model.to(context.device).to(memory_format=torch.channels_last).eval()
    images, labels = glyphs.held_out(size=size)
    inputs, labels = glyphs.prepared(images, built.preprocessing).to(context.device), labels.to(context.device)
    return Source(inputs, labels, model, *solves(model, inputs, labels))


def solves(model: FineTuneModel, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy of a network in evaluation mode on the source task: with its head, and with one fitted to its features."""
    seen: list[Tensor] = []
    model.eval()
    hook = model.head.register_forward_pre_hook(lambda _, given: seen.append(flat(given[0])))
    try:
        with torch.inference_mode():
            predicted = torch.cat([model.net(x).argmax(1) for x in inputs.split(512)])
    finally:
        hook.remove()
    return share(predicted, labels), share(refitted(torch.cat(seen).double(), labels), labels)


def refitted(features: Tensor, labels: Tensor) -> Tensor:
    """(N,) classes by ridge regression on features (N, D), of each half of the images by a head fitted to the other half."""
    predicted, half = torch.empty_like(labels), torch.arange(len(labels), device=labels.device) // (int(labels.max()) + 1) % 2
    targets = F.one_hot(labels).double()
    for i in (0, 1):
        fit, rest = half != i, half == i
        mean, std = features[fit].mean(0), features[fit].std(0).clamp(min=1e-9)
        x, z = (F.pad((features[chosen] - mean) / std, (0, 1), value=1.0) for chosen in (fit, rest))
        penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        predicted[rest] = (z @ torch.linalg.solve(x.T @ x + penalty, x.T @ targets[fit])).argmax(1)
    return predicted


def share(predicted: Tensor, labels: Tensor) -> float:
    """Accuracy."""
    return float((predicted == labels).double().mean())
