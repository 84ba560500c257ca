"""``eval.py execution.name=...`` on the toy."""

from __future__ import annotations

import pytest

from tests.entry.commands import assert_refused, timeless

WAYS = {
    "async": [],
    "ensemble": ["execution.decay=0.1"],
    "rtc": ["execution.beta=3", "execution.hold_past=false"],
    "rti": ["execution.n_steps=2", "execution.start=0.4", "execution.renoise=true", "execution.gripper_dims=[-1]"],
}


def evaluate(server, tmp_path, run, *argv):
    argv = ("n_episodes=2", "n_action_steps=4", "policy.n_inference_steps=3", *argv)
    done = server.run("eval.py", f"checkpoint={run}", f"out={tmp_path}", *argv)
    assert done.status == 0, done.err
    return timeless(done.summary)


@pytest.mark.parametrize("name", WAYS)
def test_late_chunks_do_not_depend_on_company(server, straight, tmp_path, name):
    argv = [f"execution.name={name}", "execution.delay=2", *WAYS[name]]
    one, two = (evaluate(server, tmp_path, straight, *argv, f"n_envs={n}") for n in (1, 2))
    assert one == two
    how = one["execution"]
    assert (how["name"], how["delay"], how["n_action_steps"]) == (name, 2, 4)
    assert 2 < how["nfe"] < 3 if name == "rti" else how["nfe"] == 3
    assert how["jerk"] > 0
    assert how["jump_at_switch"] > 0


def test_without_a_delay(server, straight, tmp_path):
    """Asynchronous is then synchronous; the others are not."""
    sync = evaluate(server, tmp_path, straight)
    assert evaluate(server, tmp_path, straight, "execution.name=async")["mean_return"] == sync["mean_return"]
    assert evaluate(server, tmp_path, straight, "execution.name=rtc")["mean_return"] != sync["mean_return"]


def test_refusals(server, straight):
    for argv, words in (
        (["execution.name=rct"], ["rct", "rtc"]),
        (["execution.name=async", "execution.delay=9"], ["delay=9", "n_action_steps=8"]),
        (["execution.name=async", "execution.delay=-1"], ["execution.delay"]),
        (["execution.name=rtc", "execution.decay=1"], ["execution.decay"]),
        (["execution.delay=1"], ["sync"]),
    ):
        assert_refused(server.run("eval.py", f"checkpoint={straight}", *argv), *words)
