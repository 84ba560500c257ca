"""Runs ``python train.py ...`` and ``python eval.py ...`` many times without importing torch each time.

Forks one child per command; the child does what the script's last line does. Requests and answers are JSON lines.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any


def child(request: dict[str, Any], run_main: Any, mains: dict[str, Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [request["script"], *request["argv"]]
    status = 1
    try:
        run_main(mains[request["script"]])
    except SystemExit as e:
        status = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    import matplotlib.figure  # noqa: F401
    import torch
    from torch.utils.tensorboard.writer import SummaryWriter  # noqa: F401

    import eval as evaluation
    import launch.processes
    import launch.terminal
    import train

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)  # imports a good deal
    mains = {"train.py": train.main, "eval.py": evaluation.main}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                child(request, launch.terminal.run_main, mains)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
