"""Builds the next item in a background thread while the consumer works on the current one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")


class Prefetcher(Generic[Key, Item]):
    """An iterator over ``build(key)`` for each key in order, built one item ahead in one thread.

    Item i+1 is begun when item i is handed out, never earlier, and no item is kept here once it is handed out: at most two
    items are in memory, the consumer's and the next. An exception in ``build`` is raised where its item is asked for. Use it
    as a context manager: leaving waits for the item under construction and ends the thread. ``build`` is called by that one
    thread only.
    """

    def __init__(self, build: Callable[[Key], Item], order: Iterable[Key]) -> None:
        self._build = build
        self._keys: Iterator[Key] = iter(order)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clray-prefetch")
        self._ahead: Future[Item] | None = None

    def __enter__(self) -> Prefetcher[Key, Item]:
        self._ahead = self._begin_next()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ahead = None
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._ahead is None:
            raise StopIteration
        ready, self._ahead = self._ahead, None  # after an exception there is no next item
        item = ready.result()
        self._ahead = self._begin_next()
        return item

    def _begin_next(self) -> Future[Item] | None:
        for key in self._keys:
            return self._pool.submit(self._build, key)
        return None


def prefetch(build: Callable[[Key], Item], order: Iterable[Key]) -> Prefetcher[Key, Item]:
    """``with prefetch(loader.task, range(T)) as tasks: for task in tasks: ...``

    Args:
        build: makes one item; runs in the background thread.
        order: keys of the items; may be endless.
    """
    return Prefetcher(build, order)
