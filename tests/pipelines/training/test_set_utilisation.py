"""How busy accelerators would be: the whole way with a small shape, and what the figures are said to mean."""

from pathlib import Path

import pytest

from catchment.runtime.clock import SystemClock
from pipelines.errors import RefusedError
from pipelines.training.utilisation import WORKLOADS, Measured, Utilisation, Workload, measure, write_random_set

SMALL = Workload("small", 2_000, 8, 0.001, 0.9)


def measured(control: float, warm: float, cold: float) -> str:
    shares = (Utilisation(share, share * 1_000) for share in (control, warm, cold))
    return "\n".join(Measured(Workload("job", 1_000, 10, 0.01, 0.9), 1, *shares).advice())


def test_all_samples_are_read_by_all_accelerators_together(tmp_path: Path) -> None:
    found = measure(tmp_path, SMALL, 2, 400 * SMALL.sample_bytes, SystemClock())
    for one in (found.control, found.warm, found.cold):
        assert 0 < one.share <= 1
        assert one.samples_per_s > 0


def test_a_random_set_holds_what_its_manifest_lists(tmp_path: Path) -> None:
    samples = write_random_set(tmp_path, SMALL, 50)
    assert [len(sample.payload or b"") for sample in samples] == [SMALL.sample_bytes] * 50
    assert samples.verify() == samples.manifest.bytes


def test_too_few_samples_for_a_measurement_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="two batches for each of 3"):
        measure(tmp_path, WORKLOADS["unet3d"], 3, 10_000_000, SystemClock())


def test_advice_says_what_is_short() -> None:
    assert measured(0.99, 0.98, 0.98).count("as well as samples in memory") == 2
    assert "they wait 7% of the time" in measured(0.99, 0.98, 0.93)
    assert "the disk is what is short" in measured(0.99, 0.98, 0.4)
    assert "feeds 0 of them at 90%, not 1" in measured(0.99, 0.98, 0.4)
    assert "even samples in memory do not keep them busy" in measured(0.5, 0.5, 0.4)
