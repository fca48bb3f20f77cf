"""The tests that are marked `gpu`, run on the device: every method's learning step and answer, and the native operators."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from common import Part

ROOT = Path(__file__).resolve().parents[2]
QUICK = "finetune or ncm or tent or lame"  # of the methods, in a rehearsal


def files() -> list[str]:
    """Test files that hold a test with the mark, by themselves or through a fixture of ``ops_toys``; methods last."""
    texts = {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in (ROOT / "tests").glob("test_*.py")}
    found = sorted(name for name, text in texts.items() if "mark.gpu" in text or "import DEVICES" in text or "ops_toys" in text)
    return sorted(found, key=lambda name: "methods" in name)


def main() -> None:
    """One row per test file; the failing tests by name."""
    part = Part("gpu_tests", __doc__ or "")
    report = part.options.out / ".junit.xml"
    workers = min(8, os.cpu_count() or 1) if part.full else 0
    for file in files():
        if part.left() < 10:
            part.skip(file, f"{part.left():.0f} s were left")
            continue
        if not part.full and "methods" not in file:
            part.skip(file, "on a GPU only")
            continue
        spread = ["-n", str(workers), "--dist", "worksteal"] if workers else []
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", f"cache_dir={part.options.cache}", "--tb=line",
                   f"--junitxml={report}", *spread, *([] if part.full else ["-k", QUICK]), file]
        environment = {k: v for k, v in os.environ.items() if k != "XDG_CACHE_HOME"}
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=part.left())
        except subprocess.TimeoutExpired as late:
            print(str(late.stdout or "")[-2000:])
            part.skip(file, f"not through after {late.timeout:.0f} s")
            continue
        print(done.stdout[-6000:], done.stderr[-2000:])
        if not report.is_file():
            part.skip(file, f"pytest ended with status {done.returncode}: {done.stdout[-300:]}")
            continue
        suite = ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None
        failed = [f"{case.get('name')}: {' '.join((fault.get('message') or '').split())[:200]}"
                  for case in suite.iter("testcase") for fault in [*case.iter("failure"), *case.iter("error")]]
        part.row(file=file, tests=int(suite.get("tests", 0)), failed=len(failed), skipped=int(suite.get("skipped", 0)),
                 seconds=float(suite.get("time", 0)), failures=failed)
        report.unlink()


if __name__ == "__main__":
    main()
