#!/usr/bin/env bash
# Every test of the artefacts in dist/, which `scripts/release` makes.
set -euo pipefail
cd "$(dirname "$0")"
for test in *.sh; do
    [ "$test" != all.sh ] || continue
    printf '\n== %s\n' "$test"
    "./$test"
done
