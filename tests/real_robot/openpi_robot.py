"""A robot with openpi's own client, run by a Python that has it: ADDRESS KEY -> one JSON line of what it got.

Imports nothing of Deft.
"""

import json
import sys
import urllib.request

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def failure(act) -> str:
    try:
        act()
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return ""


def main(address: str, key: str) -> None:
    found = {}
    host, port = address.removeprefix("ws://").split(":")
    found["health"] = urllib.request.urlopen(f"http://{host}:{port}/healthz").read().decode()
    found["wrong_key"] = failure(lambda: WebsocketClientPolicy(host, int(port), api_key="wrong"))
    found["no_key"] = failure(lambda: WebsocketClientPolicy(host, int(port)))
    policy = WebsocketClientPolicy(host, int(port), api_key=key)
    found["metadata"] = policy.get_server_metadata()

    states = np.random.default_rng(0).uniform(0.1, 1, (20, 7)).astype("float32")
    answer = policy.infer({"state": states[:2]})
    found["actions"] = answer["actions"].tolist()
    found["dtype"], found["timing"] = str(answer["actions"].dtype), answer["server_timing"]

    another = WebsocketClientPolicy(host, int(port), api_key=key)
    broker = ActionChunkBroker(another, action_horizon=4)
    found["steps"] = [broker.infer({"state": s, "prompt": "door open"})["actions"].tolist() for s in states[:9]]

    bad = {"shape": {"state": states[0, :5]}, "dtype": {"state": states[0].astype("int32")}, "name": {"stat": states}}
    found["errors"] = {
        name: failure(lambda obs=obs: WebsocketClientPolicy(host, int(port), api_key=key).infer(obs))
        for name, obs in bad.items()
    }
    found["still"] = policy.infer({"state": states[:2]})["actions"].shape  # the others go on
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
