"""Labels that are something else than the names of classes: missing ones, quantities, several at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from hpsearch.finetune.printable import first, several
from hpsearch.types import Finding

MISSING = frozenset({"nan", "<na>", "null", "n/a", "#n/a"})  # what programs write where there is no label, in small letters
SEPARATORS = ("|", ";", ",", "+", "&", "/")
MANY = 10  # numbers from which whole ones may be quantities


def unusual_labels(images: Mapping[str, int], plural: bool = False) -> Iterator[Finding]:
    """Findings about class names; `images` counts each, and `plural` tells that a column was meant for several labels an image."""
    classes = sorted(images)
    for name in classes:
        if name.casefold() in MISSING:
            n = images[name]
            yield Finding(
                "missing-labels",
                "warning",
                f"{several(n, 'image')} with the label '{name}', which programs write where there is none, "
                f"{'is' if n == 1 else 'are'} learned as a class of that name: write the labels, or remove the images.",
                n,
            )
    if quantities(images):
        some = sorted(classes, key=number)
        text = f"The labels are {len(classes)} different numbers ({first(some)}): this looks like regression, and hpsearch learns classes, "
        text += (
            "for each of which all others are equally wrong. Write ranges as labels, such as 'young' and 'old', if these are quantities."
        )
        yield Finding("regression", "warning", text, len(classes))
    elif combined := combinations(classes, plural):
        text = f"{several(len(combined), 'class is a combination', 'classes are combinations')} of labels ({first(combined)}): this "
        text += (
            "looks like multi-label data, and hpsearch learns one class an image, each combination as a class of its own. Choose one label "
        )
        text += "for each image, or make one study for each label with classes such as 'water' and 'no water'."
        yield Finding("multi-label", "warning", text, len(combined))


def quantities(images: Mapping[str, int]) -> bool:
    """Whether class names are measurements: numbers with fractions, or about as many whole ones as images."""
    numbers = [number(name) for name in images]
    if len(numbers) < 3 or not all(map(math.isfinite, numbers)):
        return False
    fractions = any(value != int(value) for value in numbers)
    return fractions or (len(numbers) >= MANY and 3 * len(numbers) > sum(images.values()))


def number(name: str) -> float:
    """The number that a name is; not a number for other names."""
    try:
        return float(name)
    except ValueError:
        return math.nan


def combinations(classes: Sequence[str], plural: bool) -> list[str]:
    """Those classes that are made of other classes, or of parts that make others too; lists as programs write them."""
    lists = [name for name in classes if name.startswith("[") and name.endswith("]")]
    if lists:
        return [name for name in lists if "," in name or " " in name.strip("[] ")]
    for separator in (*SEPARATORS, *((" ",) if plural else ())):
        parts = {name: [part for piece in name.split(separator) if (part := piece.strip())] for name in classes}
        uses: dict[str, int] = {}
        for some in parts.values():
            for part in {*some}:
                uses[part] = uses.get(part, 0) + 1
        made = [name for name, some in parts.items() if len(some) > 1]
        found = [name for name in made if all(uses[part] > 1 for part in parts[name])]
        if found:
            return made
        if plural and made:
            return made
    return []
