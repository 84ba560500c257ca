"""What a request and its answer may hold besides openpi's own keys; other servers and clients know nothing of them.

Of a request:

    deft/reset        true: an episode begins; frames and chunks from before are forgotten
    deft/prev_chunk   (n, Da) actions that are being executed, the first due at the newest frame: the answer goes on
                      where they lead (policies served with execution.name=rtc, prefix or rti)
    deft/delay        control steps of deft/prev_chunk that will have been executed when the answer comes

Of an answer:

    deft/chunk        (n, Da) all that the policy says of the time from the newest frame on; "actions" are its first

Without deft/prev_chunk an answer is taken for executed as the policy's execution has it: n_action_steps, then the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.errors import ContractError
from data.spec import FieldSpec, TaskSpec

PROTOCOL = 1  # of these keys and of the metadata; openpi's own has no number
RESERVED = "deft/"
RESET, PREV_CHUNK, DELAY, CHUNK = "deft/reset", "deft/prev_chunk", "deft/delay", "deft/chunk"


def task_of(metadata: Mapping[str, Any]) -> TaskSpec:
    """The contract that a server tells first. Raises ContractError where it tells none, as openpi's own servers do."""
    try:
        action = metadata["action"]
        return TaskSpec(
            name=str(metadata["task"]),
            obs={k: FieldSpec.from_dict(f) for k, f in metadata["observation"].items()},
            action=FieldSpec(tuple(action["shape"]), "float32", "action"),
            action_low=action["low"],
            action_high=action["high"],
            control_hz=metadata["control_hz"],
            env_args={key: metadata[key] for key in ("rule", "actions") if metadata.get(key) is not None},
        )
    except (KeyError, TypeError) as e:
        raise ContractError(
            f"The policy server does not say what it has to be shown ({e} in its metadata): serve the policy with "
            "`python -m real_robot.serve`."
        ) from e
