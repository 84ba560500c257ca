"""An SO-101 that LeRobot calibrated, and policies trained on what LeRobot recorded with it, in LeRobot's numbers.

The slow test asks LeRobot itself: benchmarks/peers/install_lerobot.sh, and DEFT_PEERS=its environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import ConfigError, ContractError, DataError
from data.normaliser import Normaliser
from data.spec import FieldSpec, TaskSpec
from policies.build import build_policy, normaliser_modes
from policies.checkpoint import save_policy
from real_robot.remote.lerobot_data import recorded_by_lerobot
from real_robot.remote.serving import load_served
from real_robot.robots.lerobot_arm import units_of
from real_robot.robots.servo_calibration import Calibration
from real_robot.robots.so101 import JOINTS, take_over
from tests.data.lerobot_files import write_rows

RANGES = [(760, 3330), (905, 3190), (930, 3160), (870, 3210), (0, 4095), (2030, 3500)]
THEIRS = {
    name: {"id": i + 1, "drive_mode": 0, "homing_offset": 30 * i - 70, "range_min": low, "range_max": high}
    for i, (name, (low, high)) in enumerate(zip(JOINTS, RANGES, strict=True))
}
CONFIG = {
    "n_obs_steps": 2, "horizon": 8, "n_action_steps": 4,
    "policy": {"name": "diffusion", "n_inference_steps": 2, "prediction": "sample"},
    "network": {"name": "unet1d", "down_dims": [8, 16], "time_dim": 8}, "encoder": {"state": {"hidden": []}},
}  # fmt: skip


def told_by_lerobot(ticks, units):
    """LeRobot 0.4.4's MotorsBus._normalize, as its source has it; the slow test compares."""
    low, high = np.array(RANGES, float).T
    share = (ticks - low) / (high - low)
    arm = share * 200 - 100 if units == "normalised" else (ticks - (low + high) / 2) * 360 / 4095
    return np.concatenate([arm[..., :-1], 100 * share[..., -1:]], -1)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """The path of ours."""
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "my_arm.json").write_text(json.dumps(THEIRS))
    take_over([f"file={folder / 'my_arm.json'}", f"out={folder / 'so101.json'}"])
    return folder / "so101.json"


def data_set(root, *, names=JOINTS, **more):
    """Two episodes of it, as LeRobot 0.3 lays them out (v2.1)."""
    rng, lengths = np.random.default_rng(0), (6, 5)
    ticks = rng.uniform(*np.array(RANGES).T, (sum(lengths), 2, 6))
    rows = {
        "observation.state": told_by_lerobot(ticks[:, 0], "normalised").astype("f4"),
        "action": told_by_lerobot(ticks[:, 1], "normalised").astype("f4"),
    }
    features = {key: {"dtype": "float32", "shape": [6], "names": [f"{name}.pos" for name in names]} for key in rows}
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "float32" if key == "timestamp" else "int64", "shape": [1], "names": None}
    path = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info = {
        "codebase_version": "v2.1", "robot_type": "so101_follower", "total_episodes": 2, "total_frames": 11,
        "total_tasks": 1, "chunks_size": 1000, "fps": 30, "splits": {"train": "0:2"}, "data_path": path,
        "video_path": None, "features": features, **more,
    }  # fmt: skip
    start = 0
    for i, n in enumerate(lengths):
        at = slice(start, start + n)
        counted = {
            "timestamp": (np.arange(n) / 30).astype("f4"), "frame_index": np.arange(n),
            "episode_index": np.full(n, i), "index": np.arange(at.start, at.stop), "task_index": np.zeros(n, int),
        }  # fmt: skip
        write_rows(root / path.format(episode_chunk=0, episode_index=i), {k: v[at] for k, v in rows.items()} | counted)
        start += n
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "pick"}\n')
    lines = [{"episode_index": i, "tasks": ["pick"], "length": n} for i, n in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """(checkpoint, policy) of an untrained one whose numbers are LeRobot's, and which knows no robot."""
    torch.manual_seed(0)
    spec = TaskSpec("lerobot/x", {"state": FieldSpec((6,), "float32", "state")}, FieldSpec((6,), "float32", "action"),
                    action_low=-1e3, action_high=1e3, control_hz=30.0)  # fmt: skip
    low, high = torch.tensor([-100.0] * 5 + [0.0]), torch.tensor([100.0] * 6)
    stats = {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4}
    made = build_policy(CONFIG, spec, Normaliser(normaliser_modes(spec), dict.fromkeys(("state", "action"), stats)))
    folder = tmp_path_factory.mktemp("policy")
    save_policy(folder / "checkpoint", made.eval(), CONFIG)
    return folder, made


@pytest.mark.parametrize("units", ["normalised", "degrees"])
def test_numbers_of_lerobot_become_rad_and_openings(calibration, units):
    arm = Calibration.load(calibration)
    scale, offset = units_of(arm, units)
    ticks = np.random.default_rng(1).uniform(*np.array(RANGES).T, (50, 6))
    np.testing.assert_allclose(scale * told_by_lerobot(ticks, units) + offset, arm.position(ticks), atol=1e-9)
    assert [j.homing for j in arm.joints.values()] == [t["homing_offset"] for t in THEIRS.values()]
    np.testing.assert_allclose((scale * 100 + offset)[-1], 1.0)  # the gripper is open


@pytest.mark.parametrize("units", ["normalised", "degrees"])
def test_a_policy_in_lerobots_numbers_leads_the_arm(calibration, policy, tmp_path, units):
    """Same state, same noise: what it answers in LeRobot's numbers is, in ours, what is served."""
    folder, theirs = policy
    path = data_set(tmp_path / "data")
    served = load_served(folder, device="cpu", data=path, lerobot={"units": units, "calibration": str(calibration)})
    arm = Calibration.load(calibration)
    ticks = np.random.default_rng(2).uniform(*np.array(RANGES).T, (3, 2, 6))
    noise = theirs.draw_noise(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = {"state": torch.from_numpy(told_by_lerobot(ticks, units)).float()}
        answer = theirs.unnormalise_action(theirs.sample(told, noise=noise)).double().numpy()
        shown = {"state": torch.from_numpy(arm.position(ticks)).float()}
        ours = served.policy.unnormalise_action(served.policy.sample(shown, noise=noise)).double().numpy()
    scale, offset = units_of(arm, units)
    expected = np.clip(scale * answer + offset, arm.limits[0].min(), arm.limits[1].max())
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.ptp(ours[..., 0]) > 0.01
    told = served.metadata
    assert (told["control_hz"], told["actions"]["space"], told["rule"]["state_key"]) == (30.0, "absolute", "state")


def test_what_does_not_fit_is_refused(calibration, policy, tmp_path):
    folder, _ = policy
    path, ours = data_set(tmp_path / "data"), str(calibration)

    def load(data=path, units="normalised", arm=ours):
        return load_served(folder, device="cpu", data=data, lerobot={"units": units, "calibration": arm})

    with pytest.raises(ConfigError, match=r"does not say how its episodes were recorded.*lerobot.units="):
        load_served(folder, device="cpu", data=path)
    with pytest.raises(ConfigError, match=r"needs data=.* and lerobot.calibration="):
        load(arm=None)
    with pytest.raises(ConfigError, match="needs data="):
        load(data=None)
    with pytest.raises(ConfigError, match="units=rad is not known: normalised or degrees"):
        load(units="rad")
    with pytest.raises(ConfigError, match=r"not made of one: .*so101 import"):
        load(arm="so101_simulated")
    other = data_set(tmp_path / "other", names=JOINTS[::-1])
    with pytest.raises(ContractError, match=r"action is of .'gripper', .* expected .'shoulder_pan'"):
        load(data=other)
    task = recorded_by_lerobot(path, calibration=ours, units="degrees").task.to_dict()
    ours_too = data_set(tmp_path / "deft", deft={"schema_version": 1, "task": task})
    with pytest.raises(ConfigError, match="was recorded with Deft"):
        load(data=ours_too)
    with pytest.raises(DataError, match=r"no data set that LeRobot has recorded|No data set"):
        load(data=tmp_path / "nothing")


WRONG = {
    "no such file": (None, "There is no"),
    "not JSON": ("{", "is not LeRobot's calibration"),
    "a joint is missing": ({k: v for k, v in THEIRS.items() if k != "gripper"}, "is not LeRobot's calibration"),
    "a number is missing": ({**THEIRS, "gripper": {"id": 6}}, "drive_mode"),
    "drive_mode": ({**THEIRS, "gripper": {**THEIRS["gripper"], "drive_mode": 1}}, "gripper has drive_mode 1"),
    "no range": ({**THEIRS, "elbow_flex": {**THEIRS["elbow_flex"], "range_min": 3200}}, "elbow_flex goes from 3200"),
    "Deft's own": ({"version": 1, "robot": "so101", "joints": {}}, "is not LeRobot's calibration"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_files_are_no_calibration_of_lerobots(tmp_path, case):
    content, match = WRONG[case]
    if content is not None:
        (tmp_path / "x.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=match):
        take_over([f"file={tmp_path / 'x.json'}", f"out={tmp_path / 'so101.json'}"])
    assert not (tmp_path / "so101.json").exists()


def test_the_commands(calibration, policy, tmp_path, capsys):
    """import is refused without its files; a policy in LeRobot's numbers is rehearsed on the simulated arm."""
    from real_robot.commands.deploy import main

    done = subprocess.run(
        [sys.executable, "-m", "real_robot.robots.so101", "import", "file=x.json"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (1, "import needs file=..., LeRobot's calibration of this arm, "
                                                      "and out=...")  # fmt: skip
    folder, _ = policy
    words = ["robot=so101_mujoco", "mode=rtc", "trials=1", "trial_seconds=1.0", "realtime=false",
             f"checkpoint={folder}", f"data={data_set(tmp_path / 'data')}", "lerobot.units=normalised"]  # fmt: skip
    with pytest.raises(ConfigError, match=r"lerobot\.calibration="):
        main(words)
    assert main([*words, f"lerobot.calibration={calibration}"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["success_rate"], told["n_trials"]) == (0.0, 1)


PEERS = Path(os.environ.get("DEFT_PEERS", Path(__file__).parents[2] / ".venv-peers")) / "bin" / "python"
JUDGE = """
import json, sys
from lerobot.motors import Motor, MotorCalibration, MotorNormMode as Mode
from lerobot.motors.feetech import FeetechMotorsBus
theirs, ticks, units = json.loads(sys.stdin.read())
arm = Mode.RANGE_M100_100 if units == "normalised" else Mode.DEGREES
motors = {n: Motor(c["id"], "sts3215", Mode.RANGE_0_100 if n == "gripper" else arm) for n, c in theirs.items()}
bus = FeetechMotorsBus("/dev/null", motors, {n: MotorCalibration(**c) for n, c in theirs.items()})
print(json.dumps([list(bus._normalize(dict(zip(range(1, 7), row))).values()) for row in ticks]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason=f"LeRobot is not in {PEERS}: install_lerobot.sh")
@pytest.mark.parametrize("units", ["normalised", "degrees"])
def test_lerobot_itself_says_the_same(units):
    ticks = np.random.default_rng(3).integers(*np.array(RANGES).T, (20, 6))
    asked = json.dumps([THEIRS, ticks.tolist(), units])
    done = subprocess.run([PEERS, "-c", JUDGE], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), told_by_lerobot(ticks, units), atol=1e-6)
