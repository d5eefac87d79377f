"""`make bench`: everything; `python -m benchmarks NAME ...`: some of it."""

import sys

from benchmarks import default_study, orchestration, real_data, replay
from benchmarks.common import machine

ALL = {
    "orchestration": orchestration.run,
    "default_study": default_study.run,
    "replay": replay.run,
    "real_data": real_data.run,
}

if __name__ == "__main__":
    names = sys.argv[1:] or list(ALL)
    if unknown := [name for name in names if name not in ALL]:
        sys.exit(f"no benchmark {unknown[0]}; there are: {', '.join(ALL)}")
    print("machine:", ", ".join(f"{key} {value}" for key, value in machine().items()))
    for name in names:
        print()
        ALL[name]()
