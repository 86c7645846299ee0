"""Threads that take whole tensors: order, errors, progress."""

from __future__ import annotations

import threading

import pytest
import torch

from bitdelta_hub.errors import UsageError
from bitdelta_hub.workers import Workers, pick_device, workers


def test_results_come_in_the_order_of_the_items() -> None:
    assert Workers(3).run("x", 0, lambda n: n * n, range(50)) == [n * n for n in range(50)]


def test_the_first_error_is_raised_and_ends_the_others() -> None:
    pool = Workers(2)
    begun: list[int] = []
    gate = threading.Event()

    def work(n: int) -> None:
        begun.append(n)
        if n == 0:
            gate.wait(5)
            raise KeyError("first")
        gate.set()
        while True:
            pool.advance(1)

    with pytest.raises(KeyError, match="first"):
        pool.run("x", 0, work, range(100))
    assert len(begun) < 100


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[str, int, int]] = []
    pool = Workers(2, lambda *event: seen.append(event))
    pool.run("copy", 30, lambda n: pool.advance(n), [10, 20])
    assert seen[0] == ("copy", 0, 30)
    assert seen[-1] == ("copy", 30, 30)


def test_torch_has_its_threads_back_afterwards() -> None:
    before = torch.get_num_threads()
    with workers(torch.device("cpu")):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "--device: no device 'gpu'"),
        ("cuda:x", "--device: no device 'cuda:x'"),
        ("cuda:99", f"--device: no cuda:99 here (found {torch.cuda.device_count()} CUDA devices)"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        pick_device(name)
    assert caught.value.message == message


def test_what_comes_later_is_prefetched_once() -> None:
    seen: list[int] = []
    Workers(2).run("x", 0, lambda n: n, range(6), seen.append)
    assert sorted(seen) == [2, 3, 4, 5]
