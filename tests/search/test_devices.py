"""Which GPUs there are to use, read as CUDA itself reads its variable; one for each worker."""

import os

import pytest
import torch
from hypothesis import given, strategies as st

from lightning_init.search import devices
from lightning_init.search.devices import named_in, threads_each, visible_devices
from lightning_init.search.pool import Pool
from lightning_init.search.trial import Outcome, Trial
from lightning_init.strategies.spec import InitSpec

UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-1fe3"
MIGS = "MIG-GPU-8932f937/1/0,MIG-5f1b1b2e-9b44"


@pytest.fixture
def gpus(monkeypatch):
    def given(count: int, mask: str | None) -> list[str]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if mask is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
        return visible_devices()

    return given


@pytest.mark.parametrize(
    ("count", "mask", "wanted"),
    [
        (0, None, []),
        (3, None, ["0", "1", "2"]),
        (2, "3,1", ["3", "1"]),
        (2, " 3 , 1 ", ["3", "1"]),
        (2, "3,1,-1,0", ["3", "1"]),
        (1, "0,9", ["0"]),  # there is no tenth: CUDA shows the first only
        (0, "0", []),  # a mask on a machine without GPUs
        (0, "", []),
        (0, "-1", []),
        (0, "NoDevFiles", []),
        (2, UUIDS, UUIDS.split(",")),
        (1, MIGS, MIGS.split(",")),  # of which a process sees one only
    ],
)
def test_what_a_mask_leaves(gpus, count, mask, wanted):
    assert gpus(count, mask) == wanted


@pytest.mark.parametrize("accelerator", ["cpu", "mps"])
def test_what_needs_no_gpu_gets_none(gpus, accelerator):
    assert gpus(2, None) == ["0", "1"]
    assert visible_devices(accelerator) == []
    assert visible_devices("gpu") == ["0", "1"]


NAMES = st.sampled_from(
    ["0", "1", "12", " 2", "3 ", "-1", "", " ", "GPU-a", "GPU-b", "MIG-a", "MIG-b", "NoDevFiles"]
)


@given(st.lists(NAMES, max_size=4))
def test_a_mask_means_what_torch_reads_in_it(names):
    mask = ",".join(names)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = mask
    try:
        wanted = [str(one).strip() for one in torch.cuda._parse_visible_devices()]
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
    assert named_in(mask) == wanted


@pytest.mark.parametrize(
    ("set_to", "workers", "wanted"),
    [(None, 1, 8), (None, 3, 2), (None, 9, 1), ("", 2, 4), ("3", 2, 3), ("0", 4, 2), ("all", 8, 1)],
)
def test_cores_are_divided_unless_the_user_says_how_many(monkeypatch, set_to, workers, wanted):
    monkeypatch.setattr(devices, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_to is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    assert threads_each(workers) == wanted


def told(trial: Trial, report: object) -> Outcome:
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    seen = {name: os.environ.get(name) for name in names}
    return Outcome(1.0, info={**seen, "threads": torch.get_num_threads(), "pid": os.getpid()})


@pytest.mark.slow
def test_each_worker_sees_one_device_and_its_threads(monkeypatch):
    """Three workers share two; what replaces a worker has its device."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    masks = ["GPU-1fe3", "MIG-5f1b"]
    pool = Pool(told, 3, masks, isolate=True)
    seen = []
    try:
        for job in range(6):
            pool.submit(job, Trial(InitSpec("keep"), {}, 0, 1))
            if pool.idle == 0:
                for _ in range(3):
                    answer = pool.next(lambda *news: False)
                    assert answer is not None
                    seen.append(answer.outcome.info)
    finally:
        pool.close()
    found = sorted(info["CUDA_VISIBLE_DEVICES"] for info in seen)
    assert found == ["GPU-1fe3"] * 4 + ["MIG-5f1b"] * 2
    assert {info["threads"] for info in seen} == {2}
    assert {info["OMP_NUM_THREADS"] for info in seen} == {"2"}
    assert {info["MKL_NUM_THREADS"] for info in seen} == {"2"}
    assert len({info["pid"] for info in seen}) == 6
