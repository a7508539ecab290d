"""Fuzzing guided by coverage: inputs that reach new lines of the codec are kept and changed further. Prints JSON.

    python tests/codec/guided.py [--seconds 60] [--corpus FOLDER] [--failures FOLDER]

Atheris (PyPI, Apache 2.0; libFuzzer for Python) instruments every module of `sanderling.codec` and starts from the
blobs of `tests/support/blobs.py`. The checksum is made right before an input is judged, as `tests/support/damage.py`
judges it. It has wheels for Linux on x86_64 and Python 3.11 to 3.14; elsewhere this prints why nothing is run, and
succeeds. Exit status 1 if a decoder did what it must not do; the input is in the folder for failures then.

libFuzzer ends its process by itself, so it runs in a child and its figures are read from what it prints: `executions`,
`covered` (edges between blocks of the codec's byte code; what only encoders reach is instrumented too, and never
covered), `corpus` (inputs that reached something new).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

#: Bytes of an input at most: longer ones are slower and reach nothing new.
_LONGEST = 4096
#: MiB of the whole process at most; the interpreter with numpy, onnx and the instrumentation takes 200.
_MEMORY = 1024
#: Seconds after which one input counts as hanging.
_HANGS = 5


def child(arguments: list[str]) -> None:
    """The process that libFuzzer takes over."""
    import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]  # no wheel for every platform

    with atheris.instrument_imports(include=["sanderling.codec"]):
        from tests.support import damage

    def once(data: bytes) -> None:
        damage.judge(damage.fixed(data + bytes(damage.CRC)))

    atheris.Setup([sys.argv[0], *arguments], once)
    atheris.Fuzz()


def figures(log: str) -> dict[str, Any]:
    """What libFuzzer's lines say."""
    found = dict(re.findall(r"stat::(\w+):\s+(\d+)", log))
    progress = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", log)
    covered, features, corpus = map(int, progress[-1]) if progress else (0, 0, 0)
    seeds = re.search(r"INITED cov: (\d+)", log)
    return {
        "executions": int(found.get("number_of_executed_units", 0)),
        "executions_per_second": int(found.get("average_exec_per_sec", 0)),
        "covered": covered,
        "covered_by_true_blobs": int(seeds[1]) if seeds else 0,
        "features": features,
        "corpus": corpus,
        "peak_rss_mib": int(found.get("peak_rss_mb", 0)),
    }


def main() -> int:
    """Write the seeds, run the child, tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="folder that keeps inputs from run to run")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for inputs that fail")
    options, rest = parser.parse_known_args()
    if rest[:1] == ["--child"]:
        child(rest[1:])
        return 0
    if importlib.util.find_spec("atheris") is None:
        print(
            json.dumps({"skipped": "atheris is not installed: it has wheels for Linux on x86_64, Python 3.11 to 3.14"})
        )
        return 0
    from tests.support.blobs import blobs
    from tests.support.damage import CRC

    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder, "seeds")
        seeds.mkdir()
        for number, blob in enumerate(blobs().values()):
            (seeds / f"{number}").write_bytes(blob[:-CRC])
        corpus = options.corpus or Path(folder, "corpus")
        corpus.mkdir(parents=True, exist_ok=True)
        options.failures.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, __file__, "--child", str(corpus), str(seeds), f"-max_total_time={options.seconds}",
            f"-max_len={_LONGEST}", f"-rss_limit_mb={_MEMORY}", f"-timeout={_HANGS}", "-print_final_stats=1",
            f"-artifact_prefix={options.failures.resolve()}/",
        ]  # fmt: skip
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
        log = done.stdout + done.stderr
        print(json.dumps({"seconds": round(time.monotonic() - began, 1), **figures(log), "status": done.returncode}))
    if done.returncode:
        print(log[-6000:], file=sys.stderr)
    if not any(options.failures.iterdir()):
        options.failures.rmdir()
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
