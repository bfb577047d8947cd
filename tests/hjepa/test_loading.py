"""Batches are a pure function of the step: every id once an epoch, whoever reads them, from wherever one begins."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa import distributed, loading, registry, study
from hjepa.contracts import Batch, Spec
from hjepa.errors import Mistake
from hjepa.keys import SourceKeys
from hjepa.loading import Source
from hjepa.randomness import Key, uniform

CPU = torch.device("cpu")


class Numbers:
    """A dataset whose sample i is the number i."""

    streams = {"frames": Spec(width=1, grid=(), ticks=(0, 1))}

    def __init__(self, count: int) -> None:
        self.count = count

    def split(self, name: str) -> Numbers:
        return self if name == "train" else Numbers(self.count // 2)

    def __len__(self) -> int:
        return self.count

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        return {"frames": ids.to(torch.float32)[:, None, None].expand(-1, 2, 1), "worker": torch.tensor(os.getpid())}


def shaken(batch: Batch, key: Key) -> Batch:
    return batch | {"frames": batch["frames"] + uniform(key, "shake", (1, 1))}


def source(count: int = 10, transforms: tuple = (), label: str = "a", seed: int = 0, **keys: int) -> Source:
    numbers = Numbers(count)
    return Source(label, SourceKeys(**{"batch": 4} | keys), seed, numbers, numbers, list(transforms))


def seen(sources: dict[str, Source], steps: range, workers: int) -> list[tuple[int, dict[str, Batch]]]:
    return list(loading.batches(sources, steps, workers, CPU))


# --- order ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 60), batch=st.integers(1, 20), every=st.integers(1, 3), seed=st.integers(0, 99))
def test_each_epoch_has_every_id_once_and_an_order_of_its_own(count: int, batch: int, every: int, seed: int):
    one = source(count, batch=batch, every=every, seed=seed)
    steps = [step for step in range(-(-3 * count // batch) * every) if one.due(step)]
    ids = torch.cat([one.order(step)[0] for step in steps])
    epochs = torch.cat([one.order(step)[1] for step in steps])
    assert epochs.tolist() == [place // count for place in range(len(ids))]
    orders = [ids[epochs == epoch].tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 20 or orders[0] != orders[1] != orders[2]


def test_the_order_depends_on_the_seed_and_the_label_alone():
    first = source(100).order(3)[0].tolist()
    assert source(100).order(3)[0].tolist() == first
    assert source(100, seed=1).order(3)[0].tolist() != first
    assert source(100, label="b").order(3)[0].tolist() != first


def test_processes_share_out_what_one_would_read(monkeypatch: pytest.MonkeyPatch):
    alone = [source(batch=8).order(step)[0].tolist() for step in range(5)]
    monkeypatch.setattr(distributed, "world", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append([source(batch=8).order(step)[0].tolist() for step in range(5)])
    assert [sum((share[step] for share in shares), []) for step in range(5)] == alone


def test_a_source_is_due_every_so_many_steps_and_misses_nothing():
    sources = {"a": source(8, batch=2), "b": source(8, batch=2, every=3, label="b")}
    read = seen(sources, range(12), workers=0)
    assert [sorted(batches) for _, batches in read] == [["a", "b"], ["a"], ["a"]] * 4
    ids = torch.cat([batches["b"]["ids"] for _, batches in read if "b" in batches])
    assert sorted(ids.tolist()) == list(range(8))


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 3, 7])
def test_batches_are_the_same_with_any_number_of_workers_from_any_step(start: int):
    sources = {"a": source(10, (shaken,)), "b": source(7, batch=3, every=2, label="b")}
    whole = seen(sources, range(12), workers=0)
    for workers in (0, 1, 2):
        part = seen(sources, range(start, 12), workers)
        assert [step for step, _ in part] == list(range(start, 12))
        for (_, mine), (_, wanted) in zip(part, whole[start:], strict=True):
            assert sorted(mine) == sorted(wanted)
            for label, batch in wanted.items():
                assert sorted(mine[label]) == sorted(batch)
                assert all(torch.equal(mine[label][key], batch[key]) for key in batch if key != "worker")


def test_workers_read_beside_the_training_process():
    pids = {int(batches["a"]["worker"]) for _, batches in seen({"a": source()}, range(6), workers=2)}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_what_goes_wrong_in_a_worker_is_said_here(monkeypatch: pytest.MonkeyPatch):
    def broken(self: Numbers, ids: Tensor, device: torch.device) -> Batch:
        raise Mistake("file 7 is no picture")

    monkeypatch.setattr(Numbers, "batch", broken)
    for workers in (0, 1):
        with pytest.raises(Mistake, match="file 7 is no picture"):
            seen({"a": source()}, range(2), workers)
    assert not left_behind()


def test_workers_end_where_reading_ends_before_the_last_step():
    with closing(loading.batches({"a": source()}, range(100), 2, CPU)) as reading:
        next(reading)
    assert not left_behind()


def left_behind() -> list[multiprocessing.Process]:
    """Workers that are still there; ended, since they are deaf and would keep the tests from ending."""
    found = multiprocessing.active_children()
    for process in found:
        process.kill()
    return found


ORPHANS = """
import sys
sys.path.insert(0, {folder!r})
import torch
from test_loading import CPU, loading, source
reading = loading.batches({{"a": source(10)}}, range(10**6), 2, CPU)
print(*sorted({{int(next(reading)[1]["a"]["worker"]) for _ in range(4)}}), flush=True)
input()
"""


def test_workers_die_with_a_process_that_is_killed():
    code = ORPHANS.format(folder=str(Path(__file__).parent))
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    assert all(alive(pid) for pid in workers)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 30
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- what a batch holds -----------------------------------------------------------------------------------------------


def test_a_batch_says_which_samples_it_has_and_of_which_epoch():
    ((_, batches),) = seen({"a": source(3)}, range(1, 2), workers=0)
    batch = batches["a"]
    assert batch["frames"][:, 0, 0].tolist() == batch["ids"].tolist()
    assert batch["epoch"].tolist() == [1, 1, 2, 2]


def test_a_transform_draws_for_each_sample_and_epoch_whatever_the_batch():
    def drawn(batch: int) -> dict[tuple[int, int], float]:
        read = seen({"a": source(12, (shaken,), batch=batch)}, range(24 // batch), workers=0)
        rows = [row for _, batches in read for row in zip(*(batches["a"][key].tolist() for key in ("epoch", "ids", "frames")))]
        return {(epoch, number): frames[0][0] - number for epoch, number, frames in rows}

    shakes = drawn(4)
    assert len(set(shakes.values())) == 24
    assert drawn(6) == pytest.approx(shakes, abs=1e-5)
    twice = {"a": source(12, (shaken, shaken))}
    ((_, batches),) = seen(twice, range(1), workers=0)
    double = batches["a"]["frames"][0, 0, 0] - batches["a"]["ids"][0]
    assert float(double) != pytest.approx(2 * shakes[0, int(batches["a"]["ids"][0])], abs=1e-4)


def test_looking_at_a_split_shows_the_same_samples_untransformed():
    batch = source(10, (shaken,)).look("valid", 1, 4, CPU)
    assert batch["ids"].tolist() == [1, 2, 3]
    assert batch["frames"][:, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert batch["epoch"].tolist() == [-1, -1, -1]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan() -> study.Study:
    raw = {"data": {"video": {"name": "moving_digits", "batch": 6}}, "levels": {}}
    return study.parse(raw, registry.load())


def test_a_batch_that_cannot_be_shared_out_is_refused(plan: study.Study, monkeypatch: pytest.MonkeyPatch):
    made = loading.sources(plan, {"video": Numbers(3)}, {"video": []})
    assert made["video"].order(0)[0].shape == (6,)
    monkeypatch.setattr(distributed, "world", lambda: 4)
    with pytest.raises(Mistake, match=r"data\.video\.batch: 6 cannot be shared by 4"):
        loading.sources(plan, {"video": Numbers(3)}, {"video": []})


def test_an_empty_split_is_refused(plan: study.Study):
    with pytest.raises(Mistake, match=r"data\.video: its split 'train' is empty"):
        loading.sources(plan, {"video": Numbers(0)}, {"video": []})
