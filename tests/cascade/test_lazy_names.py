"""The room's names are imported on first use: each of them alone, and by many threads at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

import quorate.cascade

pytestmark = pytest.mark.deciding

THREADS = """
import sys, threading
sys.setswitchinterval(1e-5)
import quorate.cascade as room
names, wrong, start = room.__all__, [], threading.Barrier(16)
def work(at):
    start.wait()
    try:
        for name in names[at:] + names[:at]:
            getattr(room, name)
    except Exception as error:
        wrong.append(repr(error))
threads = [threading.Thread(target=work, args=(at,)) for at in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit("; ".join(wrong) or 0)
"""


def test_every_name_is_there() -> None:
    for name in quorate.cascade.__all__:
        assert getattr(quorate.cascade, name) is not None
    assert set(quorate.cascade.__all__) <= set(dir(quorate.cascade))
    with pytest.raises(AttributeError, match=r"module 'quorate\.cascade' has no attribute 'nothing'"):
        quorate.cascade.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_many_threads_may_ask_for_them_first() -> None:
    """A package and its modules, entered by several doors at once, are met half imported: Python gives way instead of waiting for ever."""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-500:]
