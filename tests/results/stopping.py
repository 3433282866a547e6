"""Stops the real code of results/ at a chosen line: by an exception, as a signal handler raises it, or by kill -9."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

RESULTS = str(Path(__file__).parents[2] / "results")


def _stopping_at(step: int, stop: Callable[[], None]) -> Callable[[FrameType, str, Any], Any]:
    left = step

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(RESULTS):
            return None
        if event in ("line", "return"):
            left -= 1
            if left == -1:
                stop()
        return trace

    return trace


def _interrupt() -> None:
    raise KeyboardInterrupt


def interrupted_at(step: int, act: Callable[[], object]) -> bool:
    """Run `act`, raise KeyboardInterrupt before its line of that number, from 0; return whether it came so far."""
    before = sys.gettrace()
    sys.settrace(_stopping_at(step, _interrupt))
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Run `act` in a child, kill it before its line of that number, from 0; return whether it came so far."""
    child = os.fork()
    if child == 0:
        try:
            sys.settrace(_stopping_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            act()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status)
