#!/usr/bin/env bash
# Install stable-baselines3 beside Deft's own torch, for benchmarks/critic_update.py.
#
#   benchmarks/peers/install_lerobot.sh; benchmarks/peers/install_sb3.sh [PEERS_VENV]      (default: .venv-peers)
#
# Without dependencies: torch, gymnasium, numpy and matplotlib are Deft's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
peers="${1:-.venv-peers}"
[[ -x "$peers/bin/python" ]] || { echo "no Python in $peers: run benchmarks/peers/install_lerobot.sh first" >&2; exit 1; }
"$peers/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "stable-baselines3==2.9.0" cloudpickle pandas
"$peers/bin/python" -c 'import stable_baselines3 as s; print("stable-baselines3", s.__version__)'
