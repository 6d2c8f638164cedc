"""What a process has used, as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_of(pid: int) -> float:
    """CPU seconds so far (proc(5), /proc/PID/stat: user and system time)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> int:
    """Bytes resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
