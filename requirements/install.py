"""Installs Segue into the environment that runs this: `python requirements/install.py EXTRA…`.

pip alone is either mute for minutes or says some hundred lines. This says what is large, and everything if it fails.
"""

import re
import subprocess
import sys
import time
from collections import deque

LARGE = re.compile(r"(?:Downloading|Using cached) (?:\S*/)?(\S+?)-\d\S* \((\d[\d.]* [MG]B)\)")
UNPACKING = re.compile(r"Installing collected packages: (.*)")


def main(extras: list[str]) -> int:
    started = time.monotonic()
    say(f"Installing segue[{','.join(extras)}] into {sys.prefix}: a few minutes, the first time")
    code, last_lines = watch_pip(["install", "-c", "requirements/constraints.txt", "-e", f".[{','.join(extras)}]"])
    if code != 0:
        return fail("\n".join(last_lines), "pip failed; what it said last is above.")
    say(f"Installed in {time.monotonic() - started:.0f} s")
    return missing_libraries()


def watch_pip(arguments: list[str]) -> tuple[int, deque[str]]:
    """Runs pip; its exit status and its last lines."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--progress-bar", "off"]
    last_lines: deque[str] = deque(maxlen=30)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or ():
            last_lines.append(line.rstrip())
            if found := LARGE.search(line):
                say(f"  {found[1]} ({found[2]})")
            elif found := UNPACKING.search(line):
                say(f"  unpacking {found[1].count(',') + 1} packages")
    return pip.returncode, last_lines


def missing_libraries() -> int:
    """implicit's wheel expects the system's OpenMP library, which the slimmest of systems lack."""
    check = subprocess.run(
        [sys.executable, "-c", "import implicit.cpu.als"], capture_output=True, text=True, check=False
    )
    if "libgomp" in check.stderr:
        return fail("The system lacks libgomp (OpenMP): `apt-get install libgomp1`, then run this again.")
    return 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def fail(*lines: str) -> int:
    sys.stderr.write("\n".join(lines) + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
