"""`make bench`: everything; `python -m benchmarks NAME ...`: some of it; `--help` lists names and options."""

import argparse
import inspect

from benchmarks import default_study, mirror, orchestration, real_data, replay, scaling, search, suite_costs
from benchmarks.common import machine

ALL = {
    "orchestration": orchestration,
    "mirror": mirror,
    "default_study": default_study,
    "replay": replay,
    "search": search,
    "scaling": scaling,
    "real_data": real_data,
}


ASKED_FOR = {"suite_costs": suite_costs}  # no part of all of them


def main() -> None:
    """Run the benchmarks that are named."""
    known = ALL | ASKED_FOR
    listed = "\n".join(f"  {name:<15}{(module.__doc__ or '').splitlines()[0]}" for name, module in known.items())
    parser = argparse.ArgumentParser("benchmarks", epilog=listed, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which, as listed below; all without one")
    parser.add_argument("--form", choices=("small", "full"), help="two cores or one GPU (replay, search; default: what there is)")
    parser.add_argument("--minutes", type=float, help="in all (replay)")
    parser.add_argument("--cuts", help="only these numbers of frozen layers, such as 6 or 0,3,6 (replay)")
    parser.add_argument("--per-cut", type=int, help="trials of each number of frozen layers (replay)")
    parser.add_argument("--settings", help="only these, such as 0 or 0,1 (replay)")
    parser.add_argument("--only", help="only these: tuned,hpsearch (replay, search), processes,ray (scaling), 'not slow' (suite_costs)")
    parser.add_argument("--wall", type=float, help="seconds of each search (search)")
    parser.add_argument("--trials", type=int, help="of the study (orchestration, mirror, scaling)")
    parser.add_argument("--workers", help="how many, such as 1,16,256 (scaling) or 2 (suite_costs)")
    parser.add_argument("--repeats", type=int, help="how often")
    options = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    names = options.pop("names") or list(ALL)
    for name in names:
        if name not in known:
            parser.error(f"no benchmark {name}; there are: {', '.join(known)}")
        if foreign := sorted(set(options) - set(inspect.signature(known[name].run).parameters)):
            parser.error(f"{name} takes no --{foreign[0].replace('_', '-')}")
    print("machine:", ", ".join(f"{key} {value}" for key, value in machine().items()))
    for name in names:
        print()
        known[name].run(**options)


if __name__ == "__main__":
    main()
