"""Good and bad models on simulated fleets, judged by the model server's own code: what is halted, after how many devices.

Run: python bench/rollout_fleets.py [--smoke] [--runs 200]
"""

import argparse
import time

import numpy as np

from tests.pipelines.rollout.fleet_simulator import Fleet, roll_out

CASES = {
    "good": Fleet(1_000),
    "good, night: failures x3 for everyone": Fleet(1_000, night=3.0),
    "good, disagreements judged": Fleet(1_000, disagreement=0.1),
    "fails on 20 % of devices": Fleet(1_000, device_failure=0.2),
    "errors x2": Fleet(1_000, error_ratio=2.0),
    "3 points less": Fleet(1_000, disagreement=0.1, fall=0.03),
    "20 devices, good": Fleet(20),
    "20 devices, fails on 20 %": Fleet(20, device_failure=0.2),
    "200 devices, fails on 20 %": Fleet(200, device_failure=0.2),
    "10,000 devices, fails on 20 %": Fleet(10_000, device_failure=0.2),
}


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few runs")
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    runs = 3 if given.smoke else given.runs
    for name, case in CASES.items():
        began = time.process_time()
        found = [roll_out(case, np.random.default_rng(seed)) for seed in range(runs)]
        cpu_ms = (time.process_time() - began) / runs * 1e3
        reached = np.array([each.reached for each in found]) / case.devices
        halted, within = np.mean([each.is_halted for each in found]), np.mean(reached <= 0.05)
        print(
            f"{name}: halted {halted:.1%}; devices reached: mean {reached.mean():.1%}, "
            f"95 % of runs {np.quantile(reached, 0.95):.1%}, at most 5 % in {within:.1%} of runs; {cpu_ms:.0f} ms CPU a run"
        )


if __name__ == "__main__":
    main()
