"""The command line: parse, call one verb, print. Heavy libraries load inside commands, so that --help is instant."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpsearch import __version__, cli_service
from hpsearch.errors import FixSetup
from hpsearch.options import F, echo, guarded, located, served, stored

if TYPE_CHECKING:
    from hpsearch.compared import Compared
    from hpsearch.comparing import Contest
    from hpsearch.places import Place
    from hpsearch.types import TrialRecord


class Command(click.Command):
    """A command that says what an unknown option is called here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; options of other tools are explained where a study has them."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from hpsearch.other_names import hint_option

            takes_settings = any(option.name == "settings" for option in self.params)
            hint = hint_option(error.option_name) if takes_settings else None
            if hint is None:
                raise
            raise click.UsageError(f"no option {error.option_name}: {hint}", ctx) from None


class Commands(click.Group):
    """Commands in the order they are written, errors in one style, nearest name for an unknown command."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In order of definition."""
        del ctx
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Add the nearest command to "no such command"."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from hpsearch.other_names import hint_command

            raise click.UsageError(f"no command '{args[0]}': {hint_command(args[0], self.commands)}", ctx)
        if args and ctx.params.get("server") is not None and args[0] not in cli_service.SERVED and not args[0].startswith("-"):
            raise click.UsageError(f"'{args[0]}' is not for a server: with --server there are {', '.join(cli_service.SERVED)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="hpsearch")
@click.option("--server", metavar="URL", help="have the command done by `hpsearch serve` there; its token is in HPSEARCH_TOKEN")
def main(server: str | None) -> None:
    """Search hyperparameters of fine-tuning: Optuna samplers, one training kernel, MLflow, reports.

    `hpsearch run` with no file runs the embedded default study; `hpsearch report` and `hpsearch ui` show what came out.
    """
    del server  # options.served


def runs(command: F) -> F:
    """Options of what trains: one value of the study changed, and where MLflow is."""
    command = click.option("--no-tracking", is_flag=True, help="do without MLflow")(command)
    command = click.option("--tracking-uri", metavar="URI", help="MLflow store or server  [default: MLflow's own, mlflow.db here]")(command)
    return click.option("--set", "settings", multiple=True, metavar="A.B=C", help="change one value of the study, e.g. space.dropout=0.1")(
        command
    )


@main.command()
@click.argument("study", required=False, type=click.Path(path_type=Path))
@click.option("--sampler", metavar="NAME", help="grid, random, tpe, gp (bayes), qmc or cmaes  [default: tpe]")
@click.option("--trials", "--n-trials", type=int, metavar="N", help="trials in total; running again continues  [default: 50]")
@click.option("--pruner", metavar="NAME", help="none, median, halving, hyperband or patient  [default: median]")
@click.option("--seed", type=int, metavar="N", help="makes the whole study reproducible  [default: 0]")
@click.option("--timeout", metavar="T", help="begin no trial after that time: seconds, or such as 30m, 2h")
@click.option("--workers", metavar="N", help="worker processes  [default: one for each GPU, or one per core]")
@click.option("--devices", metavar="D", help="auto, all, cpu, or GPUs by number such as 0,1  [default: auto, every GPU there is]")
@click.option("--executor", metavar="NAME", help="process, or ray for several machines  [default: process]")
@click.option("--ray-address", metavar="ADDRESS", help="HOST:PORT of a Ray cluster, or auto  [default: RAY_ADDRESS, else a Ray of its own]")
@click.option("--name", metavar="NAME", help="name of the study  [default: made of file and sampler]")
@click.option("--data", metavar="DATA", help="folder, manifest, torchvision data set or module:function  [default: digits]")
@click.option("--model", metavar="NAME", help="a torchvision classifier such as resnet50, or module:function  [default: glyphnet]")
@click.option("--weights", metavar="W", help="DEFAULT, a torchvision name, a file, or none  [default: DEFAULT]")
@click.option("--objective", metavar="NAME", help="val_loss, accuracy, balanced_accuracy, precision, recall, f1, top5  [default: val_loss]")
@click.option("--warm-start", metavar="STUDY", help="begin with the best configurations of an earlier study in the same storage")
@click.option("--portfolio/--no-portfolio", default=None, help="begin with recipes that are known to be good")
@click.option("--references/--no-references", default=None, help="also train from scratch, and the head alone: what each step buys")
@click.option("--confirm", metavar="KxS", help="train the best K again on S fresh seeds, then open the test split")
@click.option("--cv", metavar="KxF", help="the same on F folds instead of seeds")
@click.option("--detach", is_flag=True, help="with --server: do not wait for its end")
@runs
@stored
@guarded
def run(
    study: Path | None,
    settings: tuple[str, ...],
    storage: str | None,
    tracking_uri: str | None,
    no_tracking: bool,
    as_json: bool,
    workers: str | None,
    detach: bool,
    **flags: Any,
) -> None:
    """Run a study to its number of trials, or go on with it.

    STUDY is a YAML file, or the name of a shipped study; without it the embedded default runs.
    The same command again continues where it stopped. Ctrl-C stops neatly; a second one at once.
    """
    from hpsearch import actions
    from hpsearch.resources import folder, study_file
    from hpsearch.spec import load_spec

    path = study_file(study) if study else None if own(flags, settings) else folder("studies") / "digits.yaml"
    spec = load_spec(path, settings, flags | {"workers": workers})
    if client := served():
        cli_service.run(client, spec, detach, as_json)
        return
    where = located(storage, tracking_uri, not no_tracking)
    from hpsearch.terminal import Lines, LiveTable, SafeConsole

    console = SafeConsole(stderr=as_json)
    view = LiveTable(console) if console.is_terminal else Lines(console)
    try:
        summary = actions.run(spec, where, [view], view.say)
    finally:
        view.close()
    if as_json:
        click.echo(json.dumps(summary.as_json(), indent=2))
    else:
        from hpsearch.summary import summary_lines

        for line in summary_lines(summary):
            echo(line, bold=line.startswith("Best: "))
        if summary.tracking_problem:
            echo(f"{summary.tracking_problem}. The study itself is whole.", err=True)
    if summary.best is None:
        sys.exit(1)


@main.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@click.option("--samplers", metavar="A,B,...", help="two or more of grid, random, tpe, gp, qmc, cmaes  [default: random,tpe,gp]")
@click.option("--trials", "--n-trials", type=int, metavar="N", help="trials of each study  [default: 30]")
@click.option("--repeats", type=int, metavar="N", help="studies of each sampler  [default: 8]")
@click.option("--seconds", type=float, metavar="S", help="training seconds of each study, in place of --trials or beside it")
@click.option("--initial", type=int, metavar="N", help="trials that all samplers of a repeat begin with  [default: 5]")
@click.option("--name", metavar="NAME", help="name of the comparison  [default: made of the file]")
@click.option("--anyway", is_flag=True, help="compare studies that differ in more than their sampler, and say so")
@click.option("--pruner", metavar="NAME", help="none, median, halving, hyperband or patient  [default: median]")
@click.option("--seed", type=int, metavar="N", help="divides the images, and seeds the repeats  [default: 0]")
@click.option("--workers", metavar="N", help="worker processes  [default: one for each GPU, or one per core]")
@click.option("--devices", metavar="D", help="auto, all, cpu, or GPUs by number such as 0,1  [default: auto, every GPU there is]")
@click.option("--data", metavar="DATA", help="as `run` has it  [default: digits]")
@click.option("--model", metavar="NAME", help="as `run` has it  [default: glyphnet]")
@click.option("--weights", metavar="W", help="as `run` has it  [default: DEFAULT]")
@click.option("--objective", metavar="NAME", help="as `run` has it  [default: val_loss]")
@runs
@stored
@guarded
def compare(
    studies: tuple[str, ...],
    anyway: bool,
    name: str | None,
    settings: tuple[str, ...],
    storage: str | None,
    tracking_uri: str | None,
    no_tracking: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Compare samplers on one task, or studies that are there.

    STUDY is a YAML file or the name of a shipped study, as for `run`; each sampler then gets a study of its own in each repeat. The same
    command again goes on where it stopped. Or STUDY is the name of an earlier comparison, or two studies or more in the storage.
    """
    from hpsearch import compared
    from hpsearch.errors import FixInput
    from hpsearch.terminal import SafeConsole

    where, client = located(storage, tracking_uri, not no_tracking), served()
    there = client.has if client else partial(compared.is_there, where)
    if looking := len(studies) > 1 or bool(studies and not studies[0].endswith((".yaml", ".yml")) and there(studies[0])):
        given = [f"--{key}" for key, value in flags.items() if value is not None] + ["--set"] * bool(settings)
        if given:
            raise FixInput(f"{', '.join(given)}: for a comparison that is to be run, and these studies are there already; leave it out")
    if client:
        if looking and name is not None:
            raise FixInput("--name is for a comparison that is to be run; a server calls one of these studies after their samplers")
        cli_service.compare(client, studies if looking else contest(studies, name, settings, flags), anyway, as_json)
        return
    from hpsearch.summary import compared_lines

    if looking:
        from hpsearch.printing import Steps

        with Steps(SafeConsole(stderr=True)) as steps:
            found = compared.look(where, studies, name, anyway, steps.say)
    else:
        found = run_comparison(contest(studies, name, settings, flags), where, as_json)
    echo(json.dumps(compared.as_json(found), indent=2) if as_json else "\n".join(compared_lines(found)))
    if found.tracking_problem:
        echo(f"{found.tracking_problem}. The studies themselves are whole.", err=True)


def contest(studies: tuple[str, ...], name: str | None, settings: tuple[str, ...], flags: dict[str, Any]) -> Contest:
    """The comparison that is asked for."""
    from hpsearch import comparing
    from hpsearch.resources import folder, study_file
    from hpsearch.spec import load_spec

    path = study_file(Path(studies[0])) if studies else None if own(flags, settings) else folder("studies") / "digits.yaml"
    wanted = flags.pop("samplers")
    samplers = wanted.split(",") if wanted is not None else comparing.SAMPLERS
    repeats, seconds, initial = (flags.pop(key) for key in ("repeats", "seconds", "initial"))
    if flags["trials"] is None:
        flags["trials"] = comparing.TRIALS if seconds is None else comparing.UNBOUNDED
    specs = [load_spec(path, settings, flags | {"sampler": sampler.strip()}) for sampler in samplers]
    more = {key: value for key, value in (("repeats", repeats), ("initial", initial)) if value is not None}
    return comparing.contest(specs, seconds=seconds, name=name, **more)


def run_comparison(asked: Contest, where: Place, as_json: bool) -> Compared:
    """Run a comparison, shown on the terminal."""
    from hpsearch import comparing
    from hpsearch.race import RaceLines, RaceTable
    from hpsearch.terminal import SafeConsole

    console = SafeConsole(stderr=as_json)
    view = RaceTable(console) if console.is_terminal else RaceLines(console)
    try:
        return comparing.compare(asked, where, [view], view.say)
    finally:
        view.close()


def own(flags: dict[str, Any], settings: tuple[str, ...]) -> bool:
    """Whether data or model are the user's, so that the embedded study is not what they are added to."""
    return bool(flags["data"] or flags["model"] or any(setting.startswith(("data=", "model=", "space.model")) for setting in settings))


@main.command("list")
@stored
@guarded
def list_(storage: str | None, as_json: bool) -> None:
    """List the studies in the storage."""
    if client := served():
        cli_service.list_studies(client, as_json)
        return
    from hpsearch import actions

    studies = actions.list_studies(located(storage, track=False))
    rows = [actions.overview(study) for study in studies]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from hpsearch.terminal import shown_value

    echo(f"{'study':<28} {'trials':>6} {'complete':>8}  {'best':<24}  sampler")
    for row in rows:
        best = f"{row['objective']} {shown_value(row['objective'], row['best_score'])}" if row["best_score"] is not None else "-"
        echo(f"{row['study']:<28} {row['trials']:>6} {row['complete']:>8}  {best:<24}  {row['sampler'] or '-'}")


@main.command()
@click.argument("study", required=False)
@stored
@guarded
def show(study: str | None, storage: str | None, as_json: bool) -> None:
    """Show the trials of a study.

    STUDY may be left out when there is only one.
    """
    if client := served():
        cli_service.show(client, study, as_json)
        return
    from hpsearch import places
    from hpsearch.diagnosis import warnings_of
    from hpsearch.reporting import study_json
    from hpsearch.terminal import columns, percent, values

    found = places.show(located(storage, track=False), study)
    if as_json:
        click.echo(json.dumps(study_json(found), indent=2))
        return
    echo(f"{found.name}: {len(found.records)} trials, sampler {found.spec.get('sampler', '-')}")
    if not found.uid:
        echo(f"It was not made by hpsearch; its objective: {found.spec['objective']}")
        for r in found.records:
            told = "  ".join(f"{key} {value!r}" for key, value in (*r.metrics.items(), *r.params.items()))
            echo(f"{r.number:>5} {r.status.value.lower():<9} {told}")
        return
    echo(f"{'trial':>5} {'state':<9}{'epoch':>6}{'val_loss':>9}{'acc %':>6}" + "".join(f"{name:>8}" for name in columns()))
    for r in found.records:
        loss = "-" if r.val_loss is None else f"{r.val_loss:.4f}"
        epoch = f"{len(r.curve)}/{r.params.get('epochs', '?')}"
        state = r.status.value.lower() + "*" * bool(r.reused)
        line = f"{r.number:>5} {state:<9}{epoch:>6}{loss:>9}{percent(r.metrics):>6}" + "".join(f"{v:>8}" for v in values(r.params))
        echo(line + (f"\n      {r.error}" if r.error else ""))
    for text in (*warnings_of((*found.records, *found.runs)), *(() if found.spec else found.headstart)):
        echo(f"Warning: {text}")
    if reused := sum(bool(r.reused) for r in found.records):
        echo(f"* {reused:,} reused: another sampler of the comparison had trained the same")


@main.command()
@click.argument("study", required=False)
@stored
@guarded
def best(study: str | None, storage: str | None, as_json: bool) -> None:
    """Print a study's best configuration and its weights."""
    from hpsearch import actions
    from hpsearch.diagnosis import diagnose
    from hpsearch.proof import proof_of
    from hpsearch.reporting import record_json
    from hpsearch.runtime.trial_files import TrialFiles
    from hpsearch.summary import confirmed, tested
    from hpsearch.terminal import score

    where = located(storage, track=False)
    found, record = actions.best(where, study)
    proof = proof_of(found)
    weights = TrialFiles(where.runs(found.name)).find(record.checkpoint)
    if as_json:
        more = {"diagnosis": diagnose(record), "proof": asdict(proof), "weights": str(weights) if weights else None}
        click.echo(json.dumps(record_json(record) | more, indent=2))
        return
    echo(f"{found.name}: trial {record.number}  {score(record)}")
    if record.curve:
        echo(f"  {diagnose(record)}")
    for line in (*confirmed(proof, record.objective), *tested(proof)):
        echo(f"  {line}" if line else "")
    for key, value in record.params.items():
        echo(f"  {key}: {value}")
    for line in class_lines(record, found.facts.get("classes", ())):
        echo(line)
    if weights is not None:
        echo(f"weights: {weights}")


def class_lines(record: TrialRecord, classes: Sequence[str]) -> list[str]:
    """Each class as the trial sees it, lowest recall first; of many classes, the twenty that it finds worst."""
    if not record.per_class:
        return []
    rows = sorted(zip(classes, *record.per_class.values(), strict=False), key=lambda row: row[3])
    lines = [f"{'class':<30} {'images':>7} {'precision':>10} {'recall':>7} {'f1':>7}"]
    lines += [f"{name[:30]:<30} {n:>7.0f} {100 * p:>8.1f} % {100 * r:>5.1f} % {100 * f:>5.1f} %" for name, n, p, r, f in rows[:20]]
    return lines + ([f"... and {len(rows) - 20} classes with a higher recall"] if len(rows) > 20 else [])


@main.command()
@click.argument("study", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="file to write; for csv and png, a folder")
@click.option("--format", "fmt", type=click.Choice(["html", "json", "csv", "png"]), default="html", show_default=True, help="to write")
@click.option("--page", metavar="PAGE", help="a page that ships with hpsearch, or a file with one of your own  [default: study, or trial]")
@click.option("--trial", type=int, metavar="N", help="about one trial, the default recipe being 0")
@stored
@guarded
def report(
    study: str | None, output: Path | None, fmt: str, page: str | None, trial: int | None, storage: str | None, as_json: bool
) -> None:
    """Write a study's page, or that of one trial.

    It is one self-contained HTML file that opens offline. JSON holds everything that the page shows as data; csv and png make a folder
    with the table behind each figure, and with each figure as an image.
    """
    if client := served():
        cli_service.report(client, study, output, as_json)
        return
    from hpsearch import reporting

    written = reporting.report(located(storage), study, output, fmt, page, trial)
    told: dict[str, Any] = {"report": str(written[0])} if fmt in ("html", "json") else {"reports": list(map(str, written))}
    echo(json.dumps(told) if as_json else "\n".join(f"Report: {path}" for path in written))


@main.command()
@click.argument("study", required=False)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="folder to write")
@click.option("--trial", type=int, metavar="N", help="another trial than the best, if its weights are still there")
@click.option("--force", is_flag=True, help="replace the model that an earlier export left in the folder")
@click.option("--uncalibrated", is_flag=True, help="do without the validation images: no temperature, no check of the score")
@click.option("--register", metavar="NAME", help="also put the model into MLflow's registry, as the champion of this name")
@click.option("--tracking-uri", metavar="URI", help="MLflow store or server  [default: MLflow's own, mlflow.db here]")
@stored
@guarded
def export(
    study: str | None,
    output: Path,
    trial: int | None,
    force: bool,
    uncalibrated: bool,
    register: str | None,
    tracking_uri: str | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Write a study's best model as a folder of its own.

    The folder holds the weights that earned the score, a model card, calibrated probabilities, and a script that needs torch but no
    hpsearch.
    """
    from hpsearch import delivery, publishing
    from hpsearch.names import check_name
    from hpsearch.printing import Steps, export_lines, registered_lines
    from hpsearch.terminal import SafeConsole

    where = located(storage, tracking_uri, register is not None)
    if register is not None:
        check_name(register, "model")
    with Steps(SafeConsole(stderr=True)) as steps:
        done = delivery.export(where, study, output, trial, force, not uncalibrated, steps.say)
        kept = publishing.register(where, register, output, done.study, done.trial, steps.say) if register else None
    if as_json:
        click.echo(json.dumps(asdict(done) | ({"registered": asdict(kept)} if kept else {}), indent=2))
    else:
        echo("\n".join([*export_lines(done), *(registered_lines(kept) if kept else [])]))


@main.command()
@click.argument("study")
@click.argument("trial")
@click.option("--verify", is_flag=True, help="end with exit code 3 where what comes out is not what is recorded")
@stored
@guarded
def replay(study: str, trial: str, verify: bool, storage: str | None, as_json: bool) -> None:
    """Train a recorded trial again, and compare it.

    TRIAL is a number, or the name of a run beside the search such as confirm-0003-seed-1. It gets the study's own images, weights,
    seed and settings; on a CPU with the same libraries every number is the same to the last bit. A trial that was stopped is trained
    to the epoch where it was. Nothing of the study is changed.
    """
    from hpsearch import replaying
    from hpsearch.errors import LookCloser
    from hpsearch.printing import Steps
    from hpsearch.summary import replay_lines
    from hpsearch.terminal import SafeConsole
    from hpsearch.types import finite_json

    with Steps(SafeConsole(stderr=True)) as steps:
        done = replaying.replay(located(storage, track=False), study, trial, steps.say)
    echo(json.dumps(finite_json(asdict(done)), indent=2) if as_json else "\n".join(replay_lines(done)))
    if verify and done.verdict == replaying.DIFFERENT:
        at = f" from epoch {done.first} on" if done.first is not None else ""
        raise LookCloser(f"{done.trial} of '{done.study}' is not what is recorded{at}")


@main.command("test")
@click.argument("study", required=False)
@click.option("--trial", type=int, metavar="N", help="another trial than the winner, if its weights are still there")
@click.option("--again", is_flag=True, help="look again, for another trial than before; it is recorded and shown")
@stored
@guarded
def test_(study: str | None, trial: int | None, again: bool, storage: str | None, as_json: bool) -> None:
    """Measure a study's winner on the test images, once.

    That the test images were looked at, when, and for which trial is recorded with the study, and shown in its report. With
    `confirm` or `cv` a study does this by itself at its end.
    """
    from hpsearch import delivery
    from hpsearch.printing import Steps, opening_lines
    from hpsearch.terminal import SafeConsole

    with Steps(SafeConsole(stderr=True)) as steps:
        opening = delivery.open_test(located(storage, track=False), study, trial, again, steps.say)
    echo(json.dumps(asdict(opening), indent=2) if as_json else "\n".join(opening_lines(opening)))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", default=3, show_default=True, metavar="K", help="classes told of each image, the most probable first")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1, ...")
@click.option("--code", metavar="M:F", help="the function that makes a model of one's own, MODULE:FUNCTION: it is imported")
@click.option("--json", "as_json", is_flag=True, help="print JSON on standard output")
@guarded
def predict(folder: Path, images: tuple[Path, ...], top: int, device: str, code: str | None, as_json: bool) -> None:
    """Tell the classes of images with an exported model.

    FOLDER is what `hpsearch export` wrote; IMAGES are files, or folders of them. Ends with exit code 1 when none could be read.
    """
    from hpsearch import delivery
    from hpsearch.printing import Steps, prediction_table
    from hpsearch.terminal import SafeConsole

    with Steps(SafeConsole(stderr=True)) as steps:
        told = delivery.predict(folder, images, top, device, code, steps.say)
    if as_json:
        click.echo(json.dumps([delivery.prediction_json(prediction) for prediction in told], indent=2))
    else:
        SafeConsole(soft_wrap=False).print(prediction_table(told))
    bad = sum(bool(prediction.error) for prediction in told)
    if bad:
        echo(f"hpsearch: {bad:,} of {len(told):,} images could not be read", err=True)
    sys.exit(1 if bad == len(told) else 0)


@main.command()
@click.argument("data")
@click.option("--model", metavar="NAME", help="also look at labels, with this model's features")
@click.option("--weights", metavar="W", help="its weights: DEFAULT, a torchvision name, or a file  [default: DEFAULT]")
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="change one value of the study, e.g. split.val=0.2")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="also write a page with thumbnails")
@click.option("--json", "as_json", is_flag=True, help="print JSON on standard output")
@guarded
def check(data: str, model: str | None, weights: str | None, settings: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Look for what is wrong with labelled images.

    DATA is a folder, a manifest, a torchvision data set or module:function, as for `run --data`; or a study file, whose data,
    split and model are then looked at. Ends with exit code 1 when a study on this data would be refused.
    """
    from hpsearch import actions
    from hpsearch.printing import Steps, data_report
    from hpsearch.spec import load_spec
    from hpsearch.terminal import SafeConsole

    study = Path(data) if data.endswith((".yaml", ".yml")) else None
    spec = load_spec(study, settings, {"data": None if study else data, "model": model, "weights": weights})
    with Steps(SafeConsole(stderr=True)) as steps:
        report = actions.check(spec, model is not None or study is not None, steps.say, output)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        SafeConsole(soft_wrap=False).print(data_report(report))
        if output:
            echo(f"Page: {output}")
    sys.exit(1 if report.refused else 0)


@main.command()
@click.argument("name", required=False)
@click.option("--size", type=int, metavar="PIXELS", help="side of the images  [default: what its weights were trained with]")
@click.option("--json", "as_json", is_flag=True, help="print JSON on standard output")
@guarded
def model(name: str | None, size: int | None, as_json: bool) -> None:
    """Print the blocks of a model that `frozen_layers` counts.

    In order, with what freezing up to there leaves trainable. Without NAME, the names of all models.
    """
    from hpsearch import actions
    from hpsearch.printing import model_table, name_columns
    from hpsearch.terminal import SafeConsole

    if name is None:
        names = actions.model_names()
        SafeConsole(soft_wrap=False).print(json.dumps(names) if as_json else name_columns(names))
        return
    rows = actions.model_blocks(name, {"size": size} if size else {})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        SafeConsole(soft_wrap=False).print(model_table(name, rows))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@guarded
def example(folder: Path) -> None:
    """Write a folder of images to try things on.

    FOLDER gets the embedded digits as PNG and JPEG, small pretrained weights of a torchvision model, and a study file.
    """
    from hpsearch import actions

    study = actions.example(folder)
    echo(f"Wrote {folder}. Now:\n\n  cd {shlex.quote(str(folder))}\n  hpsearch check {study.name}\n  hpsearch run {study.name}")


@main.command()
@click.option("--clear", is_flag=True, help="delete everything in it")
@click.option("--json", "as_json", is_flag=True, help="print JSON on standard output")
@guarded
def cache(clear: bool, as_json: bool) -> None:
    """Show the cache of decoded images.

    It is made again when needed; HPSEARCH_CACHE says where it lies.
    """
    from hpsearch import actions
    from hpsearch.printing import day, size

    found = actions.cache(clear)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    echo(f"{found['folder']}: {size(found['bytes'])}{' deleted' if clear else ''}")
    for entry in found["entries"]:
        echo(f"  {entry['images']:>8,} images  {size(entry['bytes']):>8}  last used {day(entry['last_used'])}  {entry['data']}")


@main.command()
@click.argument("study", required=False)
@click.option("--tracking-uri", metavar="URI", help="MLflow store or server  [default: MLflow's own, mlflow.db here]")
@stored
@guarded
def sync(study: str | None, tracking_uri: str | None, storage: str | None, as_json: bool) -> None:
    """Bring a study into MLflow, from the storage.

    What MLflow lacks is added, for a server that was away or a study that was run without tracking; twice changes nothing.
    """
    from hpsearch import publishing
    from hpsearch.places import ui_command
    from hpsearch.printing import Steps
    from hpsearch.terminal import SafeConsole

    where = located(storage, tracking_uri)
    with Steps(SafeConsole(stderr=True)) as steps:
        done = publishing.sync(where, study, steps.say)
    beside = f" and {done.beside:,} beside the search" if done.beside else ""
    told = f"{done.study}: MLflow has {done.trials:,} trials{beside}\nMLflow:  {ui_command(where)}"
    echo(json.dumps(asdict(done), indent=2) if as_json else told)


@main.command()
@click.argument("study", required=False)
@stored
@guarded
def rebuild(study: str | None, storage: str | None, as_json: bool) -> None:
    """Make the storage again from the results in hpsearch-runs.

    For a storage that was lost or is damaged: move what is left of it away first. Without STUDY, every study of this folder that the
    storage lacks. `hpsearch sync` then does the same for MLflow.
    """
    from hpsearch import rebuilding
    from hpsearch.printing import Steps
    from hpsearch.terminal import SafeConsole

    where = located(storage, track=False)
    with Steps(SafeConsole(stderr=True)) as steps:
        done = rebuilding.rebuild(where, study, steps.say)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in done], indent=2))
        return
    for row in done:
        if row.refused:
            echo(f"{row.study} is not entered: {row.refused}", err=True)
            continue
        beside = f" and {row.beside:,} runs beside the search" if row.beside else ""
        echo(f"{row.study}: {row.trials:,} trials{beside} are in the storage again")
        for line in row.left_out:
            echo(f"  left out, and still there: {line}", err=True)
    echo("Then:  hpsearch sync" + (f" {shlex.quote(done[0].study)}" if len(done) == 1 else " STUDY"))


@main.command()
@click.option("--fix", is_flag=True, help="repair and delete what killed sessions left behind")
@click.option("--tracking-uri", metavar="URI", help="MLflow store or server  [default: MLflow's own, mlflow.db here]")
@stored
@guarded
def doctor(fix: bool, tracking_uri: str | None, storage: str | None, as_json: bool) -> None:
    """Look for what is wrong with machine, storage and leftovers.

    Device, cores, libraries, folders, cache, storage and MLflow are looked at, and what was left behind by sessions that were killed.
    Nothing is changed without --fix, and nothing of a study that is being run. Ends with exit code 3 when something is wrong and not
    repaired.
    """
    from hpsearch import doctor as verb
    from hpsearch.errors import LookCloser
    from hpsearch.printing import Steps
    from hpsearch.summary import doctor_lines
    from hpsearch.terminal import SafeConsole

    with Steps(SafeConsole(stderr=True)) as steps:
        found = verb.examine(located(storage, tracking_uri), fix, steps.say)
    rows = [asdict(finding) for finding in found]
    echo(json.dumps(rows, indent=2) if as_json else "\n".join(doctor_lines(found)))
    if not verb.healthy(found):
        raise LookCloser("not everything is as it should be; what was found is told above")


@main.command()
@click.option("--tracking-uri", metavar="URI", help="MLflow store  [default: MLflow's own, mlflow.db here]")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("-p", "--port", default=5000, show_default=True, help="0 takes a free one")
@guarded
def ui(tracking_uri: str | None, host: str, port: int) -> None:
    """Serve MLflow's own page on the runs.

    Lean: 2 processes and 0.5 GB instead of 15 and 3 GB.
    """
    from hpsearch import actions

    command, port = actions.ui(located(None, tracking_uri), host, port)
    echo(f"MLflow on http://{host}:{port} (Ctrl-C ends it)", err=True)
    sys.stdout.flush()
    try:
        os.execv(command[0], command)  # so that whoever ends this command ends MLflow
    except OSError as error:
        raise FixSetup(f"MLflow could not be started: {error}") from None


for command in cli_service.COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    main()
