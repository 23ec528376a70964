import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile
from PIL import Image

from pipelines.demo.devices import main


def test_the_line_camera_drops_whole_pictures_with_label_and_mask(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    main(["camera", "--folder", str(tmp_path / "line"), "--seconds", "1.5", "--tally", str(tally)])
    found = sorted((tmp_path / "line").glob("*.jpg"))
    assert len(found) == int(tally.read_text()) >= 3
    for path in found:
        label = json.loads(path.with_suffix(".json").read_text())["label"]
        assert (tmp_path / "line" / "masks" / f"{path.stem}.png").exists() == (label == "defect")
        Image.open(path).load()
    assert not list((tmp_path / "line").rglob(".*"))


def test_the_microscope_drops_one_slide_with_a_smaller_level_and_its_scale(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    main(["microscope", "--folder", str(tmp_path / "scans"), "--seconds", "0.5", "--tally", str(tally)])
    (path,) = (tmp_path / "scans").iterdir()
    assert (path.name, tally.read_text()) == ("slide-000000.tif", "1\n")
    with tifffile.TiffFile(path) as tiff:
        assert [level.shape for level in tiff.series[0].levels] == [(12_288, 16_384, 3), (1_536, 2_048, 3)]
        small = tiff.series[0].levels[1].asarray()
        assert 'PhysicalSizeX="0.5"' in str(tiff.ome_metadata)
    glass = (small > 225).all(axis=2).mean()
    assert 0.3 < glass < 0.7, "tissue on glass"
    assert path.stat().st_size < 40_000_000


@pytest.mark.parametrize("device", ["vehicle-camera", "telemetry", "switch"])
def test_a_device_prints_one_json_object_a_line(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = tmp_path / "tally"
    assert main([device, "--seconds", "1", "--tally", str(tally)]) == 0
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(samples) == int(tally.read_text()) >= 2
    assert all(sample["event_time"] > 1.6e9 for sample in samples)
    if device == "vehicle-camera":
        assert Image.open(io.BytesIO(base64.b64decode(samples[0]["payload_b64"]))).format == "JPEG"


def test_a_device_ends_when_the_file_it_waits_for_appears(tmp_path: Path) -> None:
    (tmp_path / "end").touch()
    assert main(["switch", "--seconds", "600", "--until", str(tmp_path / "end")]) == 0


def test_a_device_ends_quietly_when_its_reader_goes_away() -> None:
    command = [sys.executable, "-m", "pipelines.demo.devices", "telemetry", "--seconds", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
