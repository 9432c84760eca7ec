"""What is being sent while nobody waits for it."""

import queue
import threading
from collections import deque

import torch

from mimo_role.crossing import Crossing

_UNWAITED_ON_GPU = 8
"""Batches after which a GPU's stream waits for the first of them; the host does not."""


class Outbox:
    """Keeps crossings until all that they send has been taken, and lets go of their memory then.

    Gloo tells that a message has been taken only to one who waits. So a thread waits, and the caller may be any number of
    batches ahead of those who take them.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type != "cpu"
        self._behind: deque[Crossing] = deque()
        self._queue: queue.Queue[Crossing] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def put(self, crossing: Crossing) -> None:
        """Take over a crossing of which everything has been received.

        Raises:
            BridgeError: an earlier one was not taken.
        """
        self._raise_failure()
        if not crossing.let_go():
            return
        if self._on_gpu:
            self._behind.append(crossing)
            if len(self._behind) > _UNWAITED_ON_GPU:
                self._behind.popleft().wait()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait_for_each, name="mimo-outbox", daemon=True)
            self._thread.start()
        self._queue.put(crossing)

    def wait(self) -> None:
        """Wait until all has been taken.

        Raises:
            BridgeError: something was not taken within the timeout, or the rank that was to take it has died.
        """
        while self._behind:
            self._behind.popleft().wait()
        self._queue.join()
        self._raise_failure()

    def _wait_for_each(self) -> None:
        while True:
            crossing = self._queue.get()
            try:
                crossing.wait()
            except Exception as error:  # whatever it is, the caller gets it
                self._failure = self._failure or error
            del crossing
            self._queue.task_done()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
