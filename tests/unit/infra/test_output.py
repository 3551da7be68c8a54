import subprocess
import sys
import time

CODE = """
import sys, time
from infra.output import outlive_readers
outlive_readers()
print("one", flush=True)
print("two", file=sys.stderr, flush=True)
sys.stdin.readline()
for number in range(20000):  # More than a pipe holds.
    print("line", number, flush=True)
print("three", flush=True)
open(sys.argv[1], "w").write("whole")
"""


def started(file):
    return subprocess.Popen(
        [sys.executable, "-P", "-c", CODE, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_process_outlives_who_reads_what_it_prints(tmp_path):
    process = started(tmp_path / "done")
    assert process.stdout.readline() == "one\n"
    process.stdout.close()
    time.sleep(0.1)
    process.stdin.close()
    assert process.wait(30) == 0
    assert (tmp_path / "done").read_text() == "whole"


def test_a_reader_that_stays_gets_every_line_to_the_last(tmp_path):
    process = started(tmp_path / "done")
    lines, _ = process.communicate("go\n", timeout=30)
    assert process.returncode == 0
    assert lines.splitlines() == ["one", *(f"line {n}" for n in range(20000)), "three"]
