#!/bin/sh
# Finds a Python that is new enough and lets prepare.py do the rest; arguments go through.
# PYTHON=/path/to/python3.x picks one by hand.
set -eu
unset CDPATH
cd "$(dirname "$0")/.."

candidates=".venv/bin/python python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3"
[ -z "${PYTHON:-}" ] || candidates=$PYTHON

for python in $candidates; do
    if "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null 2>/dev/null; then
        exec "$python" -I scripts/prepare.py "$@"
    fi
done
echo "gazer: needs Python 3.11 or later, found none as: $candidates" \
     "(set PYTHON=/path/to/python3.x if it stands elsewhere)" >&2
exit 1
