"""What `/metrics` is made of: histograms, labels, the memory of GPUs."""

from __future__ import annotations

import shutil
import subprocess
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from drivetrain.backends.serving.replica import gpu
from drivetrain.backends.serving.replica.metrics import SECONDS, Histogram, Metrics

DRIVER = """
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)(index + 1L); return 0; }
int nvmlDeviceGetMemoryInfo(void *handle, memory *found) {
    if ((long)handle == 2) return 999;
    found->total = 24ULL << 30; found->used = 5ULL << 30; found->free = 19ULL << 30; return 0;
}
"""
"""The driver's library, as far as it is asked: two GPUs, the second of which has fallen off the bus."""


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_histogram_counts_each_value_in_every_bucket_that_it_fits(values: list[float]) -> None:
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.observe(value)
    text = "# TYPE h histogram\n" + "\n".join(histogram.lines("h", "")) + "\n"
    (family,) = text_string_to_metric_families(text)
    found = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    for bound in SECONDS:
        assert found[f"{bound:g}"] == sum(value <= bound for value in values)
    assert found["+Inf"] == found["h_count"] == len(values)
    assert found["h_sum"] == pytest.approx(sum(values))


def test_names_are_escaped_and_what_the_worker_told_is_taken_in_once() -> None:
    calls = deque([(0.010, 0.001, 0.002, 0.004, 0.001, 3)])
    metrics = Metrics('a "b"\\', dict, calls)
    for _ in range(2):
        families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    sums = {
        s.labels["hop"]: s.value for s in families["drivetrain_replica_hop_seconds"].samples if s.name.endswith("_sum")
    }
    assert sums == pytest.approx(
        {"queue": 0.002, "decode": 0.001, "batch_wait": 0.002, "compute": 0.004, "encode": 0.001}
    )
    assert {sample.labels["model_name"] for sample in families["drivetrain_replica_requests"].samples} == {'a "b"\\'}
    assert not calls


def test_what_the_worker_told_is_taken_in_before_it_is_forgotten() -> None:
    calls: deque[tuple[float, float, float, float, float, int]] = deque(maxlen=4096)
    metrics = Metrics("m", dict, calls)
    for _ in range(10_000):
        calls.append((0.001, 0.0, 0.0, 0.001, 0.0, 1))
        metrics.ended("cog", "succeeded", 0.001)
    metrics.render()
    assert metrics.batch.count == 10_000


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_LIBRARY", "no-such-library.so")
    assert gpu.Gpus().memory() == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a driver's library with")
def test_memory_of_gpus_is_what_the_driver_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libdriver.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "driver.c")], check=True)
    monkeypatch.setattr(gpu, "_LIBRARY", str(library))
    assert gpu.Gpus().memory() == [gpu.GpuMemory(0, 5 << 30, 24 << 30)]
