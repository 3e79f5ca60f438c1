#!/bin/sh
# Creates a virtual environment with the first Python that is new enough.
# usage: scripts/create_venv.sh FOLDER          PYTHON=/path/to/python chooses one
set -eu

venv=$1
here=$(dirname "$0")

python=
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "qworker needs Python 3.11 or newer; tried: ${PYTHON:-python3, python3.14 to python3.11}." >&2
    echo "Install one, or say where it is: make install PYTHON=/path/to/python" >&2
    exit 1
fi

# Debian and Ubuntu keep the part of the standard library that makes environments in a package
# of its own, named after the version.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$here/apt_install.sh" "python$version-venv"
fi

# A half-made environment would look like a finished one the next time.
trap '[ $? = 0 ] || rm -rf "$venv"' EXIT
"$python" -m venv "$venv"
