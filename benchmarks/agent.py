"""What an agent costs a device: memory of each process, latency of predictions, processor time when idle. Prints JSON.

Method: a real agent, a real broker, the 11 k-weight CNN installed from a signed release. Memory is the proportional set
size (PSS, /proc/PID/smaps_rollup) of every process of the agent, sampled once a second over a window after a warm-up;
median and largest are given. "Idle" means connected, with a model installed, the worker not started; "serving" means
one prediction each second; "training" is the trainer's peak resident memory, as the operating system reports it, under
the configured limit.

    python benchmarks/agent.py --warm-up 10 --window 30
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from sanderling.engine.models import depthwise_cnn_1d
from tests.support.brokers import start_broker
from tests.support.fleets import RunningAgent, ServerSide, motions, until

LIMIT = "128MiB"


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(p for child in children for p in family(child))]


def pss(pid: int) -> int:
    """Proportional set size in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def processor_seconds(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sample(pid: int, seconds: float, work: Any = None) -> dict[str, Any]:
    """PSS of the whole family, once a second, and the supervisor's processor time."""
    totals, began, used = [], time.monotonic(), processor_seconds(pid)
    while time.monotonic() - began < seconds:
        if work is not None:
            work()
        totals.append(sum(pss(p) for p in family(pid)))
        time.sleep(1.0)
    share = (processor_seconds(pid) - used) / (time.monotonic() - began)
    return {
        "processes": len(family(pid)),
        "pss_mib_median": round(float(np.median(totals)) / 2**20, 1),
        "pss_mib_largest": round(max(totals) / 2**20, 1),
        "supervisor_percent_of_a_core": round(100 * share, 2),
    }


def latency(agent: RunningAgent, count: int) -> dict[str, float]:
    """Milliseconds of single-window predictions, new connection each, JSON both ways."""
    x, _ = motions(1, 0)
    agent.infer(x)
    times = []
    for _ in range(count):
        began = time.perf_counter()
        code, _answer = agent.infer(x)
        assert code == 200
        times.append(1e3 * (time.perf_counter() - began))
    return {f"p{p}_ms": round(float(np.percentile(times, p)), 2) for p in (50, 95, 99)}


def main() -> None:
    """Run all parts and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds")
    parser.add_argument("--window", type=float, default=30.0, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sl-") as folder, start_broker(Path(folder)) as broker:
        server = ServerSide(broker.port)
        server.release(1, {"model.onnx": depthwise_cnn_1d(classes=4, seed=1)})
        agent = RunningAgent(
            Path(folder, "a"), broker.port, server.public,
            learn={"memory_limit": LIMIT}, sync={"telemetry_seconds": 60.0},
        ).start()  # fmt: skip
        try:
            # asked of the server side, not of the agent: a request would start the worker
            until(lambda: ("installed", 1) in server.kinds(), 30, "the release to be installed")
            assert agent.process is not None
            pid = agent.process.pid
            time.sleep(options.warm_up)
            idle = sample(pid, options.window)
            x, labels = motions(160, 2)
            agent.infer(x[:1])
            time.sleep(options.warm_up)
            serving = sample(pid, options.window, lambda: agent.infer(x[:1]))
            timing = latency(agent, 300)
            began = time.monotonic()
            assert agent.teach(x, labels)[0] == 200
            until(lambda: server.deltas, 60, "a delta")
            seconds = time.monotonic() - began
            until(lambda: agent.status().get("training_peak"), 20, "a report")
            report = agent.status()
        finally:
            agent.stop()
            server.close()
    result = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "warm_up_seconds": options.warm_up,
        "window_seconds": options.window,
        "idle": idle,
        "serving": serving,
        "prediction": timing,
        "training": {
            "limit_mib": 128,
            "peak_resident_mib": round(report["training_peak"] / 2**20, 1),
            "seconds_from_feedback_to_receipt": round(seconds, 1),
            "delta_bytes": report["delta_bytes"],
            "float32_bytes": report["float32_bytes"],
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
