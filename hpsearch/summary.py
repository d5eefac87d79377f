"""What `run` prints at its end: the best configuration, what it gained, what was proven, and where everything is."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from hpsearch.proof import LABELS, Proof
from hpsearch.statistics import Estimate
from hpsearch.terminal import score, shown_value
from hpsearch.types import OBJECTIVES, TrialRecord

if TYPE_CHECKING:
    from hpsearch.actions import Summary
    from hpsearch.compared import Compared
    from hpsearch.doctor import Finding
    from hpsearch.replaying import Replayed

WIDTH = 79  # characters of a sentence's line


def summary_lines(s: Summary) -> list[str]:
    """Everything, line by line; the line of the best trial begins with "Best: "."""
    ending = {"timeout": "stopped at its time limit", "exhausted": "has tried every point of its grid"}.get(s.reason, "is complete")
    counts = ", ".join(f"{n} {status.lower()}" for status, n in s.counts.items())
    lines = ["", f"Study {s.study} {ending}: {sum(s.counts.values())} trials ({counts}) in {s.seconds:.0f} s"]
    if s.best is None:
        lines.append("No trial is complete: the report says how each ended.")
    else:
        best = s.winner or s.best
        confirmed = f" (confirmed; in the search trial {s.best.number} looked best)" if best.number != s.best.number else ""
        lines += ["", f"Best: trial {best.number}  {score(best)}{confirmed}", *parameters(best), ""]
        lines += [*gain(best, s.default, s.smallest_difference), ""] if s.proof is None or not s.proof.gains else []
        lines += proof_lines(s.proof, best.objective) if s.proof else []
    lines += [""] if lines[-1] else []
    for text in s.warnings:
        lines += sentence(f"Warning: {text}", rest="  ")
    lines += [""] if lines[-1] else []
    for label, value in (("Report", s.report), ("Weights", s.weights), ("MLflow", s.ui_command)):
        lines += [f"{label + ':':<9}{value}"] if value else []
    lines += ["         (or `hpsearch ui`, the same page in a sixth of the memory)"] if s.ui_command else []
    return lines


def parameters(record: TrialRecord) -> list[str]:
    """A configuration, a line each."""
    return [f"  {key:<17}{value:.4g}" if isinstance(value, float) else f"  {key:<17}{value}" for key, value in record.params.items()]


def gain(best: TrialRecord, default: TrialRecord | None, smallest: float | None = None) -> list[str]:
    """What the search gained over the default recipe, in words; `smallest`: the difference in accuracy that can be told from chance."""
    if default is None or default.score is None or best.score is None:
        return ["Gain: the default recipe (trial 0) has no result to compare with."]
    if best.number == default.number:
        return ["Gain: none yet; the default recipe (trial 0) is the best so far."]
    lines = ["Gain over the default recipe (trial 0), on the validation images, one seed each:"]
    for key in dict.fromkeys((best.objective, "val_loss", "accuracy", "f1")):
        before, after = ({"val_loss": r.val_loss, **r.metrics}.get(key) for r in (default, best))
        if before is not None and after is not None:
            lines.append(f"  {key:<8}  {shown_value(key, before)} -> {shown_value(key, after)}  ({change(key, after - before)})")
    return lines + verdict(best, default, smallest)


def verdict(best: TrialRecord, default: TrialRecord, smallest: float | None) -> list[str]:
    """Returns whether a gain in accuracy is more than chance, as far as the validation images can tell."""
    before, after = default.metrics.get("accuracy"), best.metrics.get("accuracy")
    if smallest is None or before is None or after is None:
        return []
    limit = f"these validation images show differences in accuracy from {100 * smallest:.1f} points on"
    if abs(after - before) < smallest:
        return sentence(f"Verdict: within the noise: {limit}. `--confirm 3x5` trains the best again on fresh seeds and tells.", rest="  ")
    if after < before:
        return sentence(f"Verdict: better in {best.objective} and worse in accuracy by more than chance: {limit}.", rest="  ")
    return sentence(f"Verdict: more than chance, on one seed: {limit}. `--confirm 3x5` checks it on fresh ones.", rest="  ")


def change(key: str, difference: float) -> str:
    """A difference with its sign and unit."""
    return f"{difference:+.4f} nats" if key == "val_loss" else f"{100 * difference:+.1f} points"


# ---------------------------------------------------------------- what was proven


def proof_lines(proof: Proof, objective: str) -> list[str]:
    """Confirmation, references with what each step bought, and the test."""
    return [*confirmed(proof, objective), *table(proof, objective), *bought(proof, objective), *tested(proof), *proof.notes]


def confirmed(proof: Proof, objective: str) -> list[str]:
    """The candidates in order."""
    if not proof.candidates:
        return []
    lines = [f"Confirmed on {proof.how}: mean {objective} with its 95 % interval"]
    for candidate in proof.candidates:
        failed = f", failed {candidate.failed} times" if candidate.failed else ""
        found = f"{interval(objective, candidate.scores[objective])} (selected at {shown_value(objective, candidate.selected)}{failed})"
        lines.append(f"  trial {candidate.trial:<5} {found}")
    if len(proof.candidates) > 1:
        a, b = proof.candidates[:2]
        if b.behind is None or b.behind.low is None or b.behind.low <= 0:
            lines.append(f"  Trials {a.trial} and {b.trial} cannot be told apart by that many.")
    return [*lines, ""]


def table(proof: Proof, objective: str) -> list[str]:
    """The gain table: a line for each way to come to a model."""
    if not any(row.name != "best" for row in proof.rows):
        return []
    keys = list(dict.fromkeys((objective, "val_loss", "accuracy")))[:2]
    tests = any(row.test for row in proof.rows)
    heads = [*keys, *(["test acc"] if tests else []), "seconds"]
    lines = [f"{'':<22}" + "".join(f"{head:>13}" for head in heads)]
    for row in proof.rows:
        cells = [plain(key, row.scores) for key in keys]
        cells += [plain("accuracy", row.test)] if tests else []
        cells.append(f"{row.seconds.mean:.1f}" if row.seconds else "0")
        lines.append(f"  {LABELS[row.name]:<20}" + "".join(f"{cell:>13}" for cell in cells))
    for row in proof.rows:
        if row.detail:
            lines += sentence(f"{LABELS[row.name]}: {row.detail}", first="  ", rest="    ")
    return [*lines, ""]


def bought(proof: Proof, objective: str) -> list[str]:
    """What each step bought, in points and in seconds."""
    if not proof.gains:
        return []
    keys = list(dict.fromkeys((objective, "accuracy")))
    heads = "".join(f"{key + (' (nats)' if key == 'val_loss' else ' (points)'):<24}" for key in keys)
    lines = ["What each step bought (positive is better):", f"  {'':<14}{heads}as good after"]
    for gain in proof.gains:
        cells = "".join(f"{better(key, gain.points[key]) if key in gain.points else '-':<24}" for key in keys)
        reached = "never" if gain.reached is None else f"{gain.reached:.1f}"
        lines.append(f"  {gain.what:<14}{cells}{reached} of {gain.until:.1f} s")
    lines.append("  (seconds of training, of those that it takes without the step)")
    cost = math.fsum(gain.cost for gain in proof.gains)
    return [*lines, *([f"  {cost:.0f} s of training went into the search."] if cost else []), ""]


def tested(proof: Proof) -> list[str]:
    """The test split, and how often it has been looked at."""
    judged, times = proof.test, len(proof.openings)
    if judged is None:
        return []
    scores = ", ".join(f"{key} {shown_value(key, judged.metrics[key])}" for key in ("accuracy", "f1") if key in judged.metrics)
    often = "looked at once" if times == 1 else f"looked at {times} times"
    lines = [f"Test: trial {proof.winner} on {judged.images:,} images, {often}:", f"  {scores}, loss {judged.loss:.4f}"]
    if times > 1:
        first = proof.openings[0]
        when = f"{datetime.fromtimestamp(first['at']):%Y-%m-%d %H:%M}, trial {first['trial']}"
        lines += [f"  (first {when}; who chooses by what is seen", "  there makes validation images of them)"]
    if judged.forgetting is not None:
        lines.append(f"  {judged.forgetting.sentence}")
    return lines


def interval(key: str, e: Estimate) -> str:
    """A mean with its interval."""
    if e.low is None or e.high is None:
        return shown_value(key, e.mean)
    if key == "val_loss":
        return f"{e.mean:.4f} [{e.low:.4f}, {e.high:.4f}]"
    return f"{100 * e.mean:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]"


def better(key: str, e: Estimate) -> str:
    """A gain with its interval, in nats or points."""
    scale, digits = (1.0, 3) if key == "val_loss" else (100.0, 1)
    between = "" if e.low is None or e.high is None else f" [{scale * e.low:+.{digits}f}, {scale * e.high:+.{digits}f}]"
    return f"{scale * e.mean:+.{digits}f}{between}"


def plain(key: str, scores: Mapping[str, Estimate]) -> str:
    """A mean alone."""
    return shown_value(key, scores[key].mean) if key in scores and key in OBJECTIVES else "-"


# ---------------------------------------------------------------- a trial trained again


def replay_lines(done: Replayed) -> list[str]:
    """Both curves side by side, the epochs that differ marked, and the verdict."""
    lines = [f"{done.study}, {done.trial}: as recorded, and trained again", ""]
    lines.append(f"{'':>7}{'validation loss':>24}{'training loss':>24}{'accuracy %':>18}")
    lines.append(f"{'epoch':>7}" + f"{'recorded':>13}{'again':>11}" * 2 + f"{'recorded':>10}{'again':>8}")
    nothing: Mapping[str, float] = {}
    for before, now in itertools.zip_longest(done.recorded, done.replayed, fillvalue=nothing):
        epoch = int(before.get("epoch") or now["epoch"])
        cells = [f"{cell(before.get(key)):>13}{cell(now.get(key)):>11}" for key in ("val_loss", "train_loss")]
        shares = f"{share(before.get('accuracy')):>10}{share(now.get('accuracy')):>8}"
        mark = " <" if done.first is not None and epoch >= done.first else ""
        lines.append(f"{epoch:>7}" + "".join(cells) + shares + mark)
    lines.append("")
    for text in done.remarks:
        lines += sentence(text, "  ")
    if done.remarks and not done.exact:
        lines += sentence("Equality to the last bit is promised on a CPU with the same libraries, threads and instructions only.")
    gaps = ", ".join(f"{key} {gap:.2g}" for key, gap in sorted(done.largest.items(), key=lambda item: -item[1])[:4])
    as_well = ", and so are the weights that it kept" if done.weights == "equal" else ""
    as_well = ", and it failed as recorded" if done.status["recorded"] == done.status["replayed"] == "FAILED" else as_well
    told = {
        "equal": f"Equal: {len(done.recorded):,} epochs are the same to the last bit{as_well}.",
        "close": f"Close: the same within 2 % or 0.01; largest differences: {gaps}.",
        "different": f"Different{f' from epoch {done.first} on' if done.first else ''}{f'; largest differences: {gaps}' if gaps else ''}.",
    }
    return [*lines, *sentence(told[done.verdict])]


def doctor_lines(findings: Sequence[Finding]) -> list[str]:
    """A line or two for each finding, with what to do about it."""
    lines = []
    for finding in findings:
        level = "repaired" if finding.fixed else finding.level
        lines += sentence(finding.text, f"{level:<9}{finding.name:<11}", " " * 20)
        if finding.remedy and not finding.fixed:
            lines += sentence(finding.remedy, " " * 20 + "-> ", " " * 23)
    return lines


def cell(loss: float | None) -> str:
    """A loss with as many digits as tell two apart on one line."""
    return "-" if loss is None else f"{loss:.6f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.2f}"


# ---------------------------------------------------------------- samplers compared


def compared_lines(c: Compared) -> list[str]:
    """What a comparison came to: the verdict in words, each sampler, who learns what from pruned trials, and where everything is."""
    took = f" in {c.seconds:.0f} s" if c.seconds is not None else ""
    lines = ["", f"Comparison {c.name}: {len(c.studies)} studies{took}", ""]
    for note in c.notes:
        lines += [*sentence(f"Warning: {note}"), ""]
    for text in c.verdict:
        lines += sentence(text)
    lines += ["", *standings(c), "", "What samplers learn from pruned trials:"]
    for sampler, text in c.policy.items():
        lines += sentence(f"{sampler:<7} {text}", "  ", " " * 10)
    lines.append("")
    for name, value in (("Page", c.page), ("Values", c.values), ("MLflow", c.ui_command)):
        lines += [f"{name + ':':<9}{value}"] if value else []
    return lines


def standings(c: Compared) -> list[str]:
    """A line for each sampler, the best mean rank first."""
    sign, objective = OBJECTIVES[c.comparison.objective], c.comparison.objective
    lines = [f"{'':<10}{objective + ' in the end':<29}{'rank':>5}{'trained':>9}{'reused':>8}{'pruned':>8}{'failed':>8}"]
    for s, row in zip(c.comparison.standings, c.tallies, strict=True):
        final = interval(objective, s.final.times(sign)) if math.isfinite(s.final.mean) else "none"
        lines.append(f"  {s.sampler:<8}{final:<29}{s.rank:>5.2f}{row.trained:>9,}{row.reused:>8,}{row.pruned:>8,}{row.failed:>8,}")
    return lines


def sentence(text: str, first: str = "", rest: str = "") -> list[str]:
    """A sentence in lines that fit."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest or first, break_on_hyphens=False)
