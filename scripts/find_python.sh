# Sourced by quickstart and test: sets `python` to a Python that fullrank runs on, or says what to install.
python=""
for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
    # Running it, because a name on PATH may be a stub for a version that is not installed.
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then
        python="$candidate"
        break
    fi
done
if [ -z "$python" ]; then
    echo "fullrank: needs Python 3.11, 3.12 or 3.13, and found none on PATH." >&2
    echo "fullrank: install one (Debian, Ubuntu: apt install python3.11 python3.11-venv; macOS: python.org)," >&2
    echo "fullrank: or name it: PYTHON=/path/to/python3.11 $0" >&2
    exit 1
fi
