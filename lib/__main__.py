"""The command line: `python -m lib run | sweep | refs | status | bench | publish | train | reconstruct | app | check`.

Bad input: one line and exit code 2; a failing cell: one line and 1."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def run_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--profile", default="cpu", help="a folder of params/: cpu (default), long, gpu")
    add("--only", nargs="+", metavar="NOTEBOOK", help="numbers or names, for example 02 04")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="a parameter, for every notebook that has it")
    add("--params", type=Path, metavar="FILE", help="a parameter file in place of the profile's, with one notebook in --only")
    add("--force", action="store_true", help="run again, and train again, even where nothing changed")
    add("--jobs", type=int, default=0, metavar="N", help="notebooks at a time (default: 2 on a CPU with two cores, 1 on a GPU)")
    add("--brief", action="store_true", help=argparse.SUPPRESS)


def run_command(given: argparse.Namespace) -> int:
    from lib import jobs, machine, params, run

    overrides = dict(params.override(text) for text in given.set)
    place = {"root": given.root or run.ROOT, "output": given.output, "file": given.params}
    tasks = run.plan(given.profile, given.only, overrides, **place)
    devices = {machine.device(task.parameters.get("device", "auto")) for task in tasks}
    many = jobs.count(given.jobs, len(tasks), "cuda" if "cuda" in devices else "cpu")
    if many == 1:
        run.execute(given.profile, given.only, overrides, force=given.force, brief=given.brief, **place)
        return 0
    own = {task.name: [text for text in given.set if params.override(text)[0] in task.parameters] for task in tasks}
    return jobs.execute([task.name for task in tasks], many, _words(given, own)) or run.summary(tasks)


def _words(given: argparse.Namespace, own: dict[str, list[str]]):
    """The options of `run` again, for the process of one notebook, with those of --set that it has."""

    def words(name: str) -> list[str]:
        parts = ["--profile", given.profile, *(["--force"] if given.force else []), *(["--set", *own[name]] if own[name] else [])]
        places = {"--root": given.root, "--output": given.output, "--params": given.params}
        return parts + [word for option, value in places.items() if value for word in (option, str(value))]

    return words


def sweep_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("design", type=Path, metavar="DESIGN.yaml", help="what is swept, for example params/sweep.yaml")
    add("--engine", default="local", help="local (default): processes on this machine; ray: a Ray cluster (extra `cluster`)")
    add("--address", help="of the Ray cluster, host:port, or auto for the one that runs here (default: one of our own is started here)")
    add("--jobs", type=int, default=0, metavar="N", help="tasks at a time (default: one per core, or --jobs-per-gpu on each GPU)")
    add("--jobs-per-gpu", type=int, default=2, metavar="N", help="tasks that share a GPU (default 2)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto (default): CUDA where there is a GPU")
    add("--seeds", type=int, metavar="N", help="how many seeds, in place of the design's")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="a value for all tasks, in place of the design's")
    add("--out", type=Path, metavar="DIR", help="the sweep's folder (default: outputs/sweep/NAME)")
    add("--resume", action="store_true", help="refuse to begin: there must be a sweep to continue (the same command always continues)")
    add("--dry-run", action="store_true", help="say how many tasks there are and how long they may take, and run nothing")
    add("--yes", action="store_true", help="run a design of more than a thousand tasks")
    add("--weights", action="store_true", help="keep every task's trained weights")


def sweep_command(given: argparse.Namespace) -> int:
    from lib import design, params, run, sweep

    overrides = dict(params.override(text) for text in given.set)
    overrides |= {} if given.seeds is None else {"seeds": given.seeds}
    found = design.load(given.design, overrides, given.root)
    folder = given.out or (given.output or (given.root or run.ROOT) / "outputs") / "sweep" / found.name
    how = {name: getattr(given, name) for name in ("engine", "address", "jobs", "device", "resume", "yes")}
    options = sweep.Options(**how, per_gpu=given.jobs_per_gpu, keep=given.weights, root=given.root)
    if given.dry_run:
        print("\n".join(sweep.plan(found, folder, options)))
        return 0
    failed = sweep.run(found, folder, options)["failed"]
    if found.rule == "techniques":
        from lib import synergy

        print(synergy.summary(folder))
    return 1 if failed else 0


def refs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="numbers or names, for example 02 04")
    parser.add_argument("--pictures", action="store_true", help="make the README's pictures; without --only, nothing but them")


def refs_command(given: argparse.Namespace) -> int:
    from lib import pictures, refs, run

    root = given.root or run.ROOT
    changed = [] if given.pictures and not given.only else refs.refresh(given.only, root=root)
    changed += pictures.make(root) if given.pictures else []
    print(f"changed: {', '.join(changed) or 'none'}")
    return 0


def status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="of a sweep (default: a line per notebook and sweep)")
    parser.add_argument("--watch", action="store_true", help="again every two seconds, until the sweep ends or Ctrl-C")


def status_command(given: argparse.Namespace) -> int:
    from lib import board

    return board.show(given.folder, given.root, given.output, given.watch)


def check_command(given: argparse.Namespace) -> int:
    from lib import check, run

    lines = check.environment(given.root or run.ROOT)
    for verdict, text in lines:
        print(f"{verdict:<8} {text}")
    return 2 if any(verdict == "problem" for verdict, _ in lines) else 0


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="for example selective encoder; the file keeps the others")


def bench_command(given: argparse.Namespace) -> int:
    from lib import bench, run

    bench.run(given.root or run.ROOT, only=given.only)
    return 0


def publish_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", help="whose finished runs become the reference; without it only the README's table is written again")
    parser.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="numbers or names, for example 02 04")


def publish_command(given: argparse.Namespace) -> int:
    from lib import publish, run

    publish.publish(given.profile, given.only, root=given.root or run.ROOT)
    return 0


def reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("readings", type=Path, metavar="READINGS.csv", help="columns x, y, value or lon, lat, value; a unit may follow, as in value [K]")
    add("--out", type=Path, required=True, metavar="FIELD.nc", help="the field; a picture (.png) and a page (.html) go beside it")
    add("--method", default="auto", help="auto (default), v5, gp, oi or another of baselines.METHODS")
    add("--data", type=Path, metavar="PAST", help="past fields to learn from: .nc .npy .npz .csv or a folder of pictures")
    add("--variable", metavar="NAME", help="which one, where --data holds several")
    add("--weights", type=Path, metavar="FILE", help="a trained v5 (.safetensors)")
    add("--grid", metavar="ROWSxCOLUMNS", help="for example 256x256 (default: past fields' own, else about 4,000 nodes)")
    add("--like", type=Path, metavar="GRID.nc", help="answer on the coordinates of this file")
    add("--samples", type=int, default=16, metavar="K", help="coherent fields to draw (default 16)")
    add("--seed", type=int, default=0, help="of the samples (default 0)")
    add("--noise", default="auto", help="standard deviation of the readings' errors in their unit (default: found from the readings)")
    add("--column", default="value", metavar="NAME", help="the column of the values (default: value)")


def reconstruct_command(given: argparse.Namespace) -> int:
    from lib import reconstruct

    if given.output or given.root:
        raise ValueError("reconstruct writes where --out says; leave --output and --root out")
    words = {"past": given.data, **{k: v for k, v in vars(given).items() if k in reconstruct.OPTIONS}}
    for heading, says in reconstruct.run(given.readings, given.out, **words):
        print(f"{heading:<9} {says}")
    return 0


def train_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, metavar="PAST", help="past fields: .nc .npy .npz .csv or a folder of pictures")
    add("--world", nargs="+", metavar="NAME", help="worlds of the lab in place of --data")
    add("--fields", type=int, default=3000, metavar="N", help="fields of the worlds to learn from (default 3000)")
    add("--out", type=Path, required=True, metavar="PRIOR.safetensors", help="where the prior goes; its card (.json) goes beside it")
    add("--variable", metavar="NAME", help="which one, where --data holds several")
    add("--seed", type=int, default=0, help="of the fields held out to judge it (default 0)")


def train_command(given: argparse.Namespace) -> int:
    from lib import learn

    if given.output or given.root:
        raise ValueError("train writes where --out says; leave --output and --root out")
    if (given.data is None) == (given.world is None):
        raise ValueError("train learns from past fields: give them with --data, or worlds of the lab with --world")
    if given.world:
        lines = learn.of_worlds(given.world, given.out, given.fields, given.seed)
    else:
        lines = learn.run(given.data, given.out, given.variable, given.seed)
    for heading, says in lines:
        print(f"{heading:<9} {says}")
    return 0


def app_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to listen on (default 127.0.0.1: nobody but this machine)")
    add("--port", type=int, default=8866, help="default 8866")
    add("--theme", default="light", help="light (default) or dark")


def app_command(given: argparse.Namespace) -> int:
    from lib import serve

    if given.output or given.root:
        raise ValueError("app writes nothing; leave --output and --root out")
    return serve.run(given.host, given.port, given.theme)


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """A command without options of its own."""


# name -> (what it does, its options, what it runs); a command imports what it needs itself, so that --help is instant
COMMANDS = {
    "run": ("execute the notebooks with the parameters of a profile", run_arguments, run_command),
    "sweep": ("run every task of a design, here or on a cluster", sweep_arguments, sweep_command),
    "refs": ("make the notebooks' saved outputs again, in place", refs_arguments, refs_command),
    "status": ("what has been run, per profile; how far a sweep is", status_arguments, status_command),
    "bench": ("measure what a step and an evaluation cost on this machine", bench_arguments, bench_command),
    "publish": ("make finished runs the reference that README and notebooks quote", publish_arguments, publish_command),
    "reconstruct": ("make a field of scattered readings", reconstruct_arguments, reconstruct_command),
    "train": ("learn a prior from past fields, for reconstruct --weights", train_arguments, train_command),
    "app": ("the playground as a page of its own, by Voila", app_arguments, app_command),
    "check": ("is this machine ready?", no_arguments, check_command),
}


class Parser(argparse.ArgumentParser):
    """argparse with a mistake reported in one line."""

    def error(self, message: str):
        self.exit(2, f"{message}; see {self.prog} --help\n")


def main(words: list[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 a notebook failed, 2 bad input, 128 + signal when stopped."""
    parser = Parser(prog="python -m lib", description="Sparse Fields Lab")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (says, arguments, _) in COMMANDS.items():
        one = commands.add_parser(name, help=says, description=says)
        one.add_argument("--root", type=Path, help="a folder with notebooks/ and params/ (default: this checkout)")
        one.add_argument("--output", type=Path, metavar="DIR", help="where run folders go (default: outputs/)")
        arguments(one)
    given = parser.parse_args(words)
    try:
        return COMMANDS[given.command][2](given)
    except (ValueError, RuntimeError) as error:
        code = getattr(error, "exit_code", 2 if isinstance(error, ValueError) else None)
        if code is None or "\n" in str(error):
            raise
        print(error, file=sys.stderr)
        return code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
