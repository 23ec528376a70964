"""A model that this device cannot run is refused by its signed description, before one byte of it is fetched."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from edge_agent.models.config import ModelConfig
from edge_agent.models.device_class import DeviceClass, RuntimeProbe, measure_active, probe_device, why_unfit
from edge_agent.models.device_probe import one_node
from pipelines.rollout.golden import try_model
from pipelines.rollout.onnx_file import read_onnx_file
from schemas.model import ImageInput, ModelNeeds, ModelSpec
from tests.fakes import model_repository as fake

DEVICE = DeviceClass("aarch64", 4, 4_096, "1.22.0", RuntimeProbe({"": 23, "ai.onnx.ml": 5}, has_contrib=False, small_ms=1.0))
CONFIG = ModelConfig("bright", "root.json", ("camera_frame",))


def spec(**needs: object) -> ModelSpec:
    return ModelSpec("bright", 1, ImageInput(4, 4), needs=ModelNeeds(**needs))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ({"opsets": {"": 24}}, "needs operator set 24 of ONNX, and onnxruntime 1.22.0 here has 23"),
        ({"opsets": {"": 17, "ai.onnx.ml": 6}}, "operator set 6 of ai.onnx.ml"),
        ({"opsets": {"": 17}, "ops": ("com.microsoft::Gelu",)}, "com.microsoft::Gelu"),
        ({"bytes": 300 * 1024 * 1024}, "max_bytes is 268,435,456"),
        ({"peak_mib": 300}, "took 300 MiB where it was published; max_memory_mib is 192"),
    ],
)
def test_a_model_that_needs_what_is_not_here_does_not_fit(needs: dict[str, object], reason: str) -> None:
    assert reason in why_unfit(spec(**needs), DEVICE, CONFIG)


def test_a_model_that_fits_and_one_that_says_nothing_are_tried() -> None:
    fits = spec(bytes=10, opsets={"": 23, "ai.onnx.ml": 5, "com.microsoft": 1}, peak_mib=100)
    contrib = replace(DEVICE, probe=replace(DEVICE.probe, has_contrib=True))
    assert why_unfit(fits, DEVICE, CONFIG) == ""
    assert why_unfit(spec(ops=("com.microsoft::Gelu",)), contrib, CONFIG) == ""
    assert why_unfit(ModelSpec("bright", 1, ImageInput(4, 4)), DEVICE, CONFIG) == ""


def test_the_models_of_the_probe_are_what_the_publisher_reads() -> None:
    found = read_onnx_file(one_node("Binarizer", "ai.onnx.ml", {"": 17, "ai.onnx.ml": 3}))
    assert found.opsets == {"": 17, "ai.onnx.ml": 3}
    assert found.operators == {("ai.onnx.ml", "Binarizer")}


def test_a_device_is_looked_at_and_its_models_are_measured(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    found = probe_device()
    assert found.probe.opsets[""] >= 17
    assert found.probe.opsets["ai.onnx.ml"] >= 3
    assert found.probe.small_ms > 0
    assert measure_active(device.config, tmp_path / "state") is None
    device.want(core.publish())
    measured = measure_active(device.config, tmp_path / "state")
    assert measured is not None
    assert (measured.name, measured.version) == ("bright", 1)
    assert measured.peak_mib > 20
    assert measured.p95_ms > 0


def test_an_unfit_model_is_refused_without_its_bytes_and_the_old_one_stays(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish())
    body = fake.tiny_model(0.1, padding=100_000)
    golden = try_model(body, fake.IMAGE).golden
    needs = ModelNeeds(len(body), {"": 99})
    unfit = core.repository.publish("bright", body, fake.IMAGE, labels=fake.LABELS, golden=golden, needs=needs)
    before = len(core.requests)
    assert device.want(unfit) == "refused"
    (report,) = device.updater.report()
    assert (report.version, report.refused) == (1, (2,))
    assert "operator set 99 of ONNX" in report.reason
    assert not any(".onnx" in request for request in core.requests[before:])
