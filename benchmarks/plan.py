"""Does a study take what `jaxablate plan` says?

Each study runs in a process of its own, once with other seeds, which compiles, and then timed. The ceiling of a row is
the time that was planned, from rates measured just before. Checked: the first run took at most the memory that was
planned.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import jaxablate as ja
from benchmarks._harness import Report, Row
from benchmarks._setup import dataset

CASES = {
    "the paper's networks, 2 epochs": {"epochs": 2},
    "six seeds of (200, 200), both protocols, 1 epoch": {
        "networks": [[200, 200]], "seeds": list(range(6)), "protocols": ["paper", "published"], "epochs": 1,
    },
    "ReLU, (1000, 1000), 1 epoch": {"networks": [[1000, 1000]], "activation": "relu", "epochs": 1},
    "tanh, four layers of 100, 2 epochs": {"networks": [[100] * 4], "activation": "tanh", "epochs": 2},
}  # fmt: skip


def run_case(settings: dict, sizes: list[int]) -> dict:
    """Plan and run one study; runs in the child process."""
    import resource

    config = ja.StudyConfig(**settings, dataset="auto", data_dir=os.environ.get("JAXABLATE_DATA_DIR"))
    other = replace(config, seeds=tuple(seed + 100 for seed in config.seeds))
    ja.run_study(other)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    plan = ja.study.plan_study(config, sizes)
    times = []  # of reports on curves, the first of which comes when all networks are trained

    def note(what: str, *_) -> None:
        if what.startswith("ablate"):
            times.append(time.perf_counter())

    begin = time.perf_counter()
    ja.run_study(config, on_progress=note)
    end, trained = time.perf_counter(), times[0]
    planned = sum(stage.seconds for stage in plan.stages if stage.name == "training")
    return {
        "training": [trained - begin, planned],
        "scores and curves": [end - trained, plan.seconds - planned],
        "memory": [peak, plan.memory],
    }


def main() -> None:
    data = dataset()  # fetched once, here
    sizes = ja.study.Sizes.of(data)
    report = Report("plan", f"Studies on {data.source.name}, and what was planned for them", "s")
    for question, settings in CASES.items():
        command = [sys.executable, "-m", "benchmarks.plan", json.dumps([settings, sizes])]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result = json.loads(output.splitlines()[-1])
        peak, planned = (of / 2**30 for of in result.pop("memory"))
        if peak > planned:
            raise AssertionError(f"{question}: peak {peak:.2f} GiB, planned {planned:.2f}")
        check = f"peak {peak:.2f} GiB, planned {planned:.2f}"
        result["all"] = [sum(part) for part in zip(*result.values(), strict=True)]
        for variant, (value, expected) in result.items():
            report.add(Row(question, variant, value, value, value, check, ceiling=expected))
    report.finish()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run_case(*json.loads(sys.argv[1]))))
    else:
        main()
