#!/bin/sh
# Makes this checkout ready: .venv with every package at its locked version and hash, and a Mosquitto for tests and demo.
# Quick when nothing has changed. Needs Python 3.11 or newer; installs system packages only as root, else says which.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_new_enough "$PYTHON" || stop "PYTHON=$PYTHON is not Python 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.11 python3.12 python3.13; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    stop "Python 3.11 or newer is needed; found $(python3 --version 2>/dev/null || echo none). Install one, or name it: make setup PYTHON=/path/to/python3.11"
}

# install_system PURPOSE APT_NAME DNF_NAME APK_NAME BREW_NAME ('-' where the system has it in its Python already)
install_system() {
    purpose=$1
    if command -v apt-get >/dev/null 2>&1; then
        command_line="apt-get update && apt-get install -y --no-install-recommends $2"
    elif command -v dnf >/dev/null 2>&1; then
        command_line="dnf install -y $3"
    elif command -v apk >/dev/null 2>&1; then
        command_line="apk add $4"
    elif command -v brew >/dev/null 2>&1; then
        command_line="brew install $5"
    else
        stop "$purpose is missing and no known package manager is here; install it by hand, then run make setup again"
    fi
    # Only apt-get is tried here: it is the one this script is tested with.
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        stop "$purpose is missing. Run as root, then make setup again: $command_line"
    fi
    say "$purpose is missing: $command_line"
    DEBIAN_FRONTEND=noninteractive sh -c "$command_line" >/tmp/catchment-setup-$$.log 2>&1 || {
        cat /tmp/catchment-setup-$$.log >&2
        rm -f /tmp/catchment-setup-$$.log
        stop "could not install it; see above"
    }
    rm -f /tmp/catchment-setup-$$.log
}

make_venv() {
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        # Debian and Ubuntu keep it apart from python3; a python3.x next to the default one has its own package.
        case $python in
            python3.*) package="$python-venv" ;;
            *) package=python3-venv ;;
        esac
        install_system "Python's venv module" "$package" python3 python3 python3
        "$python" -c 'import ensurepip, venv' || stop "$python still has no ensurepip and venv; name a complete Python: make setup PYTHON=/path/to/python3"
    fi
    say "making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
}

wanted() { { cat requirements.lock pyproject.toml scripts/setup.sh; .venv/bin/python --version; } | cksum; }

sync_packages() {
    stamp=.venv/catchment.stamp
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ]; then
        return
    fi
    if [ -z "${PIP_CONFIG_FILE:-}" ] && [ -f environment/pip.conf ]; then
        PIP_CONFIG_FILE=$PWD/environment/pip.conf
        export PIP_CONFIG_FILE
    fi
    say "installing the locked packages (a few minutes the first time)"
    # --no-deps: the lock is complete, and every file must match its hash.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
    wanted >"$stamp"
}

# A .venv knows its own path: one that came along with a moved or copied checkout is made again.
is_whole_venv() { .venv/bin/python -c '' 2>/dev/null && head -n 1 .venv/bin/pip 2>/dev/null | grep -qF "$PWD/.venv/"; }

has_mosquitto() { PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null 2>&1; }

started=$(date +%s)
is_whole_venv || make_venv
sync_packages
has_mosquitto || install_system "Mosquitto (the MQTT broker of demo and tests)" "mosquitto mosquitto-clients" mosquitto "mosquitto mosquitto-clients" mosquitto
has_mosquitto || stop "Mosquitto was installed but is not on PATH or in /usr/sbin"
took=$(($(date +%s) - started))
[ "$took" -lt 2 ] || say "ready after $took s"
