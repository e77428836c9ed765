"""Ending a run that is asked to stop: by SIGTERM, which clusters send, or by Ctrl-C; on every rank or on one of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

_POLL_S = 0.5  # how long a rank may not know that another one has ended


class StopOnSignal(Callback):
    """Ends a run on every rank between two batches, and within `at_once` immediately, by a `SIGTERMException`.

    Its code, the exit status, is 143 after SIGTERM and 130 after Ctrl-C. A second Ctrl-C raises KeyboardInterrupt at once,
    wherever the run is.
    """

    def __init__(self) -> None:
        self._signal: int | None = None  # the first that was received
        self._at_once = self._speaks = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts its handler in the place of Lightning's, which may wait for a rank that is not in its own."""
        self._speaks = trainer.is_global_zero
        if trainer.received_sigterm:
            self._signal = signal.SIGTERM
        self._handle_signals()

    on_validation_start = on_train_start
    on_test_start = on_train_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Stops if any rank was asked to: every rank passes here, between two batches."""
        if trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            raise self._stopped()

    on_validation_batch_start = on_train_batch_start
    on_test_batch_start = on_train_batch_start

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, being asked to stop raises SIGTERMException at once; so does an end of the block elsewhere.

        For work that each rank does by itself: whatever ends the block of one rank early ends that of the others, without
        any of them waiting for another. The caller lets the ranks meet afterwards.
        """
        with ExitStack() as after:
            for number, handler in self._handle_signals().items():
                after.callback(signal.signal, number, handler)
            store = None
            if dist.is_initialized() and dist.get_world_size() > 1:
                store = dist.PrefixStore("mirage", dist.distributed_c10d._get_default_store())
                ended = threading.Event()
                watch = threading.Thread(target=_watch, args=(store, ended), daemon=True)
                watch.start()
                after.callback(watch.join)
                after.callback(ended.set)
            try:
                self._at_once = True
                if self._signal is not None:
                    raise self._stopped()
                yield
            except BaseException:
                if store is not None:
                    store.set("ended", "")
                raise
            finally:
                self._at_once = False

    def _stopped(self) -> SIGTERMException:
        return SIGTERMException(128 + (self._signal or signal.SIGTERM))

    def _handle_signals(self) -> dict[int, Any]:
        """Makes `_handle` the handler of what is not ignored (as by nohup), and returns those that were before."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        handlers = ((number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT))
        before: dict[int, Any] = {number: handler for number, handler in handlers if handler is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, self._handle)
        return before

    def _handle(self, number: int, _: Any) -> None:
        again, self._signal = self._signal is not None, self._signal or number
        if again:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
        elif self._at_once:
            raise self._stopped()
        elif self._speaks and number == signal.SIGINT:
            os.write(2, b"\nstopping after this batch; Ctrl-C again stops at once\n")  # print may be under way


def _watch(store: dist.Store, ended: threading.Event) -> None:
    """Asks this process to stop as soon as another rank has ended its block early."""
    while not ended.wait(_POLL_S):
        try:
            asked = store.check(["ended"])
        except dist.DistError:  # the rank that holds the store is gone
            asked = True
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)
            return
