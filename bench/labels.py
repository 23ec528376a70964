"""How long labels take to come in: 100,000 of each format, first and a second time. `python bench/labels.py [labels]`."""

import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from pipelines.labels.drawn import Drawn, LabelKind, LabelTask
from pipelines.labels.exchange import FORMATS, import_labels
from pipelines.labels.matching import LabelOrigin
from pipelines.lake.lake import lake_at

SHAPES = {
    "yolo-seg": (LabelKind.POLYGON, (1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0)),
    "yolo-obb": (LabelKind.ROTATED, (20.0, 20.0, 8.0, 4.0, 30.0)),
}
PER_PICTURE = 50


def main(count: int) -> None:
    pictures = count // PER_PICTURE
    samples = pa.table({
        "stream": ["camera_frame"] * pictures, "device": ["cam"] * pictures, "epoch": pa.array([1] * pictures, pa.int64()),
        "seq": pa.array(range(pictures), pa.int64()), "width": pa.array([640] * pictures), "height": pa.array([480] * pictures),
    })  # fmt: skip
    print(f"{'format':<14}{'labels':>9}{'first, CPU s':>15}{'again, CPU s':>15}")
    for name in FORMATS:
        if name == "masks":  # one picture's bytes a label: it measures PNG
            continue
        kind, numbers = SHAPES.get(name, (LabelKind.BOX, (1.0, 2.0, 30.0, 40.0)))
        with tempfile.TemporaryDirectory() as folder:
            lake, path = lake_at(Path(folder) / "lake"), Path(folder) / f"labels{FORMATS[name].suffix}"
            FORMATS[name].write(path, [_task(at, kind, numbers) for at in range(pictures)])
            seconds = []
            for expected in (count, 0):
                start = time.process_time()
                done = import_labels(lake, path, name, samples, LabelOrigin("defect", "ann", now_us=1))
                seconds.append(time.process_time() - start)
                assert done.new == expected, (name, done)
            print(f"{name:<14}{count:>9,}{seconds[0]:>15.1f}{seconds[1]:>15.1f}", flush=True)


def _task(at: int, kind: LabelKind, numbers: tuple[float, ...]) -> LabelTask:
    moved = (Drawn("", kind, "dent", (numbers[0] + shift % 9, *numbers[1:])) for shift in range(PER_PICTURE))
    return LabelTask(f"camera_frame/cam/1/{at}", "", f"camera_frame~cam~1~{at}.jpg", 640, 480, tuple(moved))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
