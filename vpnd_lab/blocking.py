"""Labs for programs that do not run on trio: a lab in a thread of its own.

    with open_lab(LabSpec.parse("[sites.fra]\\n[sites.ams]"), start="links") as lab:
        lab.do(lambda lab: lab.site("fra").wait_state("ams", "active"))
        print(lab.do(lambda lab: lab.site("fra").run(["wg"])).stdout)

What a lab can do is described once, in vpnd_lab.lab; `do` runs any of it, also an async function
of the caller's own that measures traffic or captures packets.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from vpnd_lab.lab import Lab, Start
from vpnd_lab.lab import open_lab as open_on_trio
from vpnd_lab.spec import LabSpec

T = TypeVar("T")


class BlockingLab:
    """A running lab, for one or several threads."""

    def __init__(self, lab: Lab, token: trio.lowlevel.TrioToken) -> None:
        self._lab = lab
        self._token = token

    def do(self, call: Callable[[Lab], Awaitable[T]]) -> T:
        """Run `call(lab)` to its end in the lab's thread and return its result.

        Raises what it raises; trio.RunFinishedError after the lab was taken down.
        """

        async def call_it() -> T:
            return await call(self._lab)

        return trio.from_thread.run(call_it, trio_token=self._token)


@contextmanager
def open_lab(
    spec: LabSpec, *, name: str | None = None, start: Start = "network"
) -> Iterator[BlockingLab]:
    """Build a lab, and take it down at the end of the block, whatever happens in it.

    The arguments are those of vpnd_lab.lab.open_lab. Raises LabError where the lab cannot be built.
    """
    built: queue.SimpleQueue[BlockingLab | BaseException] = queue.SimpleQueue()
    over = trio.Event()
    ended: list[BaseException] = []

    async def stand() -> None:
        async with open_on_trio(spec, name=name, start=start) as lab:
            built.put(BlockingLab(lab, trio.lowlevel.current_trio_token()))
            await over.wait()

    def run() -> None:
        try:
            trio.run(stand)
        except BaseException as error:  # of whatever kind: it belongs to the caller's thread
            ended.append(error)
            built.put(error)

    thread = threading.Thread(target=run, name="lab", daemon=True)
    thread.start()
    answer = built.get()
    if isinstance(answer, BaseException):
        thread.join()
        raise answer
    try:
        yield answer
    finally:
        trio.from_thread.run_sync(over.set, trio_token=answer._token)
        thread.join()
    if ended:
        raise ended[0]
