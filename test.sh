#!/usr/bin/env bash
# Builds everything and runs all tests. Arguments go to ctest:  ./test.sh -L unit   ./test.sh -R checkpoints
# --full: every crash point, every repeat, long runs, of which the default run takes a sample (MUSTER_FULL_TESTS=1 for one test by hand).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
started=$SECONDS
if [[ ${1:-} == --full ]]; then
  export MUSTER_FULL_TESTS=1
  shift
fi

./setup.sh --tests

echo
status=0
# Four at once on two cores: many tests wait more than they compute.
ctest --test-dir build --output-on-failure --no-tests=error --timeout 600 --parallel 4 "$@" || status=$?
printf '\nBuild and tests took %d min %02d s.\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60))
exit "$status"
