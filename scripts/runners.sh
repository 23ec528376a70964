#!/bin/sh
# Brings the runners that are no Python packages into .runners: Beam's Prism, built by Go at the release of apache-beam in the lock.
# Flink's and Spark's job servers are Java archives and are brought by hand (docs/scale.md).
set -eu
cd "$(dirname "$0")/.."
version=$(sed -n 's/^apache-beam[^=]*==\([0-9.]*\).*/\1/p' requirements.lock | head -n 1)
[ -n "$version" ] || { echo "runners: no apache-beam in requirements.lock" >&2; exit 1; }
if [ -x .runners/bin/prism ] && [ "$(cat .runners/prism.version 2>/dev/null)" = "$version" ]; then
    exit 0
fi
command -v go >/dev/null 2>&1 || { echo "runners: Prism is built by Go 1.25 or newer; install it and try again" >&2; exit 1; }
echo "runners: building Prism $version (minutes the first time)"
mkdir -p .runners/bin
GOBIN="$PWD/.runners/bin" GOFLAGS=-mod=mod go install "github.com/apache/beam/sdks/v2/go/cmd/prism@v$version"
echo "$version" >.runners/prism.version
