import io
from itertools import islice

import numpy as np
from PIL import Image

from pipelines.demo import drawn
from pipelines.demo.drawn import DAY_S, LAP_S, drive, flows
from schemas.contract import builtin_contract


def test_the_same_seed_draws_the_same_strip() -> None:
    first, second = drawn.strip_frame(3, 17), drawn.strip_frame(3, 17)
    assert (first.pixels == second.pixels).all()
    assert first.label == second.label
    assert (drawn.strip_frame(4, 17).pixels != first.pixels).any()


def test_about_a_third_of_the_strip_frames_show_a_defect_and_only_those_have_a_mask() -> None:
    frames = [drawn.strip_frame(1, index) for index in range(200)]
    assert 40 <= sum(frame.label == "defect" for frame in frames) <= 80
    assert all((frame.mask.max() == 255) == (frame.label == "defect") for frame in frames)


def test_a_frame_encodes_to_files_that_pillow_opens() -> None:
    frame = drawn.strip_frame(1, 0)
    assert Image.open(io.BytesIO(drawn.jpeg(frame.pixels))).size == (drawn.WIDTH, drawn.HEIGHT)
    assert (np.asarray(Image.open(io.BytesIO(drawn.png(frame.mask)))) == frame.mask).all()


def test_the_road_is_darker_at_night() -> None:
    noon = drawn.road_frame(1, 0, hour=12.0, steering_deg=0.0)
    night = drawn.road_frame(1, 0, hour=1.0, steering_deg=0.0)
    assert night.mean() < 0.4 * noon.mean()


def test_the_drive_keeps_to_the_contract_and_closes_its_loop() -> None:
    contract = builtin_contract("vehicle_telemetry")
    for step in range(600):
        for name, value in drive(5, step * 0.2).columns().items():
            column = contract.column(name)
            assert column is not None, name
            if not isinstance(value, str):
                assert column.minimum is None or value >= column.minimum, name
                assert column.maximum is None or value <= column.maximum, name
    assert abs(drive(5, 0.0).latitude_deg - drive(5, LAP_S * 17).latitude_deg) < 1e-6
    assert abs(drive(5, 1.0).hour - drive(5, 1.0 + DAY_S).hour) < 1e-9


def test_flows_name_only_columns_of_the_contract_and_hold_labelled_scans() -> None:
    contract = builtin_contract("network_flow")
    rows = [row for tick in islice(flows(2), 600) for row in tick]
    assert {name for row in rows for name in row} <= {column.name for column in contract.columns}
    scans = [row for row in rows if row["label"] == "malicious"]
    assert scans
    assert all(row["conn_state"] in ("REJ", "RSTO") for row in scans)
    assert len({row["uid"] for row in rows}) == len(rows)
