"""Files as other projects write them."""

import json

import h5py
import numpy as np

ENV_ARGS = {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": {"control_freq": 20}}
LENGTHS = (7, 12, 4)


def robomimic_file(path, lengths=LENGTHS, env_args=ENV_ARGS, compression=None, userblock=0, action_scale=1.0):
    """As robomimic's dataset_states_to_obs.py does; returns {key: (T of all, *shape)} as Deft shows them."""
    rng = np.random.default_rng(0)
    all_rows = {}
    with h5py.File(path, "w", userblock_size=userblock) as file:
        data = file.create_group("data")
        if env_args is not None:
            data.attrs["env_args"] = json.dumps(env_args)
        # HDF5 lists demo_10 before demo_2; the order is that of the numbers
        for i, n in enumerate(lengths):
            rows = {
                "robot0_eef_pos": rng.normal(size=(n, 3)),
                "object": rng.normal(size=(n, 10)).astype("f4"),
                "agentview_image": rng.integers(0, 256, (n, 8, 9, 3)).astype("u1"),
                "action": action_scale * rng.uniform(-1, 1, (n, 7)),
                "reward": rng.normal(size=n),
                "done": np.arange(n) == n - 1,
                "states": rng.normal(size=(n, 5)),
            }
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = n, "<mujoco/>"
            for key, value in rows.items():
                theirs = {"action": "actions", "reward": "rewards", "done": "dones"}.get(key, key)
                if key in ("action", "reward", "done", "states"):
                    demo[theirs] = value
                else:
                    for group in ("obs", "next_obs"):
                        demo.create_dataset(f"{group}/{key}", data=value, compression=compression)
                all_rows.setdefault(key, []).append(value)
        file["mask/train"] = np.array([f"demo_{i}" for i in range(len(lengths) - 1)], dtype="S8")
        file["mask/valid"] = np.array([f"demo_{len(lengths) - 1}"], dtype="S8")
    return {k: np.concatenate(v) for k, v in all_rows.items()}
