from __future__ import annotations

import itertools
import threading
import time
import weakref

import pytest

from clray.data.prefetch import prefetch


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("clray-prefetch")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert prefetch_threads() == []


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_items_come_in_order():
    with prefetch(lambda key: key * key, [3, 1, 2]) as items:
        assert list(items) == [9, 1, 4]


def test_nothing_to_build_gives_nothing():
    with prefetch(lambda key: key, []) as items:
        assert list(items) == []


def test_the_next_item_is_built_while_the_current_one_is_used_and_no_further():
    built = []
    with prefetch(lambda key: built.append(key) or key, range(10)) as items:
        wait_until(lambda: built == [0])
        for item in items:
            wait_until(lambda item=item: len(built) == min(item + 2, 10))
            time.sleep(0.005)
            assert len(built) == min(item + 2, 10)


def test_one_background_thread_builds_everything():
    with prefetch(lambda key: threading.get_ident(), range(20)) as items:
        builders = set(items)
    assert len(builders) == 1
    assert threading.get_ident() not in builders


def test_an_item_handed_out_is_not_kept():
    class Block:
        pass

    with prefetch(lambda key: Block(), range(3)) as items:
        block = next(items)
        reference = weakref.ref(block)
        del block
        wait_until(lambda: reference() is None)


def test_an_exception_is_raised_where_its_item_is_asked_for():
    def build(key):
        if key == 2:
            raise ValueError("broken item 2")
        return key

    with prefetch(build, range(5)) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(ValueError, match="broken item 2"):
            next(items)
        assert list(items) == []


def test_an_exception_in_the_order_itself_reaches_the_consumer():
    def order():
        yield 0
        raise KeyError("no more keys")

    with pytest.raises(KeyError), prefetch(lambda key: key, order()) as items:
        list(items)


def test_leaving_early_ends_the_thread_and_builds_nothing_more():
    built = []
    with prefetch(lambda key: built.append(key) or key, itertools.count()) as items:
        for item in items:
            if item == 3:
                break
    assert prefetch_threads() == []
    assert len(built) <= 5
    assert list(items) == []


def test_an_exception_of_the_consumer_ends_the_thread():
    def consume():
        with prefetch(lambda key: key, itertools.count()) as items:
            next(items)
            raise RuntimeError("consumer")

    with pytest.raises(RuntimeError, match="consumer"):
        consume()
    assert prefetch_threads() == []
