#!/usr/bin/env bash
# Runs the fast tests against the built wheel, away from the sources, with the lowest and the newest versions.
#
#   tests/versions.sh                        # all rows below
#   tests/versions.sh "3.11 lowest"          # one of them; arguments after the first go to pytest
#   KEEP=folder tests/versions.sh ...        # keeps the environments there
#
# A row is a Python, which must be on the PATH as python3.x, and `lowest` or `newest`.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
work=${KEEP:-$(mktemp -d)}
mkdir -p "$work"
# The lowest versions that were tried together. tensorflow-datasets needs the older tensorflow-metadata there.
lowest=(tensorflow==2.18.1 tf_keras==2.18.0 keras==3.10.0 tensorflow-probability==0.25.0 "tensorflow-metadata<1.18")
rows=("3.11 lowest" "3.11 newest" "3.12 newest" "3.13 newest")
if [ $# -gt 0 ]; then
    rows=("$1")
    shift
fi

rm -rf "$work/source" "$work/wheel" "$work/outside"
mkdir "$work/outside"
# A copy: a build leaves files beside the sources.
git -C "$root" archive --prefix=source/ HEAD | tar -x -C "$work"
"${PYTHON:-python3}" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" "$work/source"
cp -r "$work"/source/{tests,examples,docs,*.md,CITATION.cff,pyproject.toml} "$work/outside"

failed=0
for row in "${rows[@]}"; do
    read -r version which <<<"$row"
    environment="$work/$version-$which"
    python=$environment/bin/python
    pins=()
    [ "$which" = lowest ] && pins=("${lowest[@]}")
    [ -x "$python" ] || "python$version" -m venv "$environment"
    "$python" -m pip install --quiet --upgrade pip
    "$python" -m pip install --quiet "$(ls "$work"/wheel/*.whl)[dev]" ${pins[@]+"${pins[@]}"}
    # A kept environment may have an earlier wheel of the same version.
    "$python" -m pip install --quiet --force-reinstall --no-deps "$work"/wheel/*.whl
    echo "== Python $version, $which:" $("$python" -m pip freeze | grep -iE "^(tensorflow|tensorflow-probability|keras|tf_keras|numpy)==")
    # The layout and the files of the distribution are of the sources.
    (cd "$work/outside" && "$python" -m pytest -n "${JOBS:-2}" -m "not slow" -q -p no:cacheprovider \
        --ignore tests/test_layout.py --ignore tests/test_packaging.py tests "$@") || failed=1
done
exit $failed
