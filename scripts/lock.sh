#!/bin/sh
# Chooses every package's version again and writes the locks: the whole checkout's, the bare agent's, those of the tests with PyTorch and with peers.
# No index host is written into them: the person who installs decides where packages come from.
set -eu
cd "$(dirname "$0")/.."
command -v uv >/dev/null 2>&1 || { echo "lock: uv is needed: python3 -m pip install uv" >&2; exit 1; }
common="--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --quiet"
# shellcheck disable=SC2086 # the options are words
uv pip compile pyproject.toml --extra dev $common "$@" -o requirements.lock
# shellcheck disable=SC2086
uv pip compile pyproject.toml $common -c requirements.lock "$@" -o requirements-agent.lock
# shellcheck disable=SC2086
printf '%s\n' "litdata>=0.2.76" "torch>=2.5" | uv pip compile - $common -c requirements.lock "$@" -o requirements-torch.lock
# shellcheck disable=SC2086
printf '%s\n' "datasets>=3.0" "kubernetes-validate>=1.31" "mlcroissant>=1.0" "pycocotools>=2.0.8" "pylance>=1.0" "tfrecord>=1.14" "webdataset>=1.0" "xarray>=2025.6" |
    uv pip compile - $common -c requirements.lock "$@" -o requirements-peers.lock
