#!/bin/sh
# Builds catchment-agent_<version>_<architecture>.deb: the agent and its locked packages below /opt/catchment, run by the
# system's own Python. docs/adr/0016-a-deb-without-a-virtual-environment.md says why so.
#
# usage: deploy/edge/build-deb.sh [folder for the package]      PYTHON=python3.11 chooses the Python it is for
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
into=${1:-$root/dist}
python=${PYTHON:-/usr/bin/python3}
for tool in dpkg-deb dpkg "$python"; do
    command -v "$tool" >/dev/null 2>&1 || { echo "build-deb: $tool is needed" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
tree=$work/tree
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml" | head -n 1)
minor=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
next=$("$python" -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')
architecture=$(dpkg --print-architecture)

# Every package by its hash, ready-made: the device it goes to has no compiler, and neither needs this machine.
install -d "$tree/opt/catchment/lib" "$tree/opt/catchment/bin" "$work/wheel"
pip="$python -m pip --disable-pip-version-check --quiet"
$pip install --no-compile --no-deps --require-hashes --only-binary :all: --target "$tree/opt/catchment/lib" -r "$root/requirements-agent.lock"
if [ -n "${WHEEL:-}" ]; then
    cp "$WHEEL" "$work/wheel/"
else
    $pip wheel --no-deps --wheel-dir "$work/wheel" "$root"
fi
$pip install --no-compile --no-deps --no-index --target "$tree/opt/catchment/lib" "$work"/wheel/catchment-*.whl
# The core is no part of a device; what runs there is the agent and the language that both speak.
rm -rf "$tree/opt/catchment/lib/pipelines" "$tree/opt/catchment/lib/bin"
# Compiled here, checked never: /opt may be read-only, and a small device starts in half the time.
"$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$tree" "$tree/opt/catchment/lib"

cat >"$tree/opt/catchment/bin/edge-agent" <<'LAUNCHER'
#!/bin/sh
# The agent by the system's Python and its own packages; a user's packages and the working folder stay out.
here=$(dirname "$(dirname "$(readlink -f "$0")")")
export PYTHONPATH="$here/lib" PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1
exec /usr/bin/python3 -c 'from edge_agent.cli import main; main()' "$@"
LAUNCHER
chmod 0755 "$tree/opt/catchment/bin/edge-agent"
install -d "$tree/usr/bin" "$tree/etc/catchment"
ln -s /opt/catchment/bin/edge-agent "$tree/usr/bin/edge-agent"
install -D -m 0644 "$here/catchment-agent.service" "$tree/lib/systemd/system/catchment-agent.service"
for example in "$here"/agent.*.toml "$root/CHANGELOG.md"; do
    install -D -m 0644 "$example" "$tree/usr/share/doc/catchment-agent/$(basename "$example")"
done
install -D -m 0644 "$root/LICENSE" "$tree/usr/share/doc/catchment-agent/copyright"
install -d "$tree/usr/share/bash-completion/completions"
PATH=$tree/opt/catchment/bin:$PATH _EDGE_AGENT_COMPLETE=source_bash PYTHONPATH=$tree/opt/catchment/lib "$python" -c \
    'import sys; sys.argv[0] = "edge-agent"; from edge_agent.cli import app; app(prog_name="edge-agent")' \
    >"$tree/usr/share/bash-completion/completions/edge-agent"
find "$tree" -name __pycache__ -prune -o -type d -exec chmod 0755 {} +

install -d "$tree/DEBIAN"
for script in postinst prerm postrm; do
    install -m 0755 "$here/debian/$script" "$tree/DEBIAN/$script"
done
size=$(du -sk --exclude=DEBIAN "$tree" | cut -f 1)
cat >"$tree/DEBIAN/control" <<CONTROL
Package: catchment-agent
Version: $version
Architecture: $architecture
Maintainer: Catchment maintainers <maintainers@catchment.example>
Section: net
Priority: optional
Installed-Size: $size
Depends: python3 (>= $minor), python3 (<< $next)
Recommends: openssl
Description: captures what a device sees and delivers each sample exactly once
 The edge agent of Catchment: it keeps samples through power cuts and broken
 networks, and deletes only what the core has confirmed.
CONTROL
install -d "$into"
package=$into/catchment-agent_${version}_${architecture}.deb
# Times of the last commit, root as owner: the same sources give the same bytes.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
# shellcheck disable=SC2086 # the options are words
dpkg-deb --root-owner-group ${COMPRESSION:--Zxz} --build "$tree" "$package" >/dev/null
echo "$package"
