#!/usr/bin/env bash
# The crate: holds what a crate needs and nothing else, could be published, its own tests compile, and
# `cargo install --path .` installs the program.
set -euo pipefail
cd "$(dirname "$0")/../.."
fail() { echo "FAILED: $*" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What is not committed is in the crate that is tried here, though never in one that is published.
cargo package --list --locked --allow-dirty >"$work/list" 2>/dev/null
unexpected=$(grep -vE '^(src|examples|docs)/|^tests/([^/]+|(audit|relay|support|vector_file)/.*)\.rs$|^tests/vectors/' "$work/list" |
    grep -vxE '\.cargo_vcs_info\.json|Cargo\.(toml|toml\.orig|lock)|build\.rs|packaging/no-unwind-tables\.ld|(README|SECURITY|CHANGELOG)\.md|LICENSE' || true)
[ -z "$unexpected" ] || fail "the crate should not hold: $unexpected"
for file in build.rs LICENSE README.md SECURITY.md CHANGELOG.md src/main.rs docs/operating.md; do
    grep -qx "$file" "$work/list" || fail "the crate lacks $file"
done

# Packs it, asks the registry's index, and stops before the upload.
cargo publish --dry-run --locked --allow-dirty --no-verify --package codex-responses-api-proxy \
    --target-dir target >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; fail "cargo publish --dry-run"; }

cargo package --quiet --locked --allow-dirty --no-verify --package codex-responses-api-proxy --target-dir target/crate
mkdir "$work/crate"
version=$(sed -n '/^\[package\]$/,/^\[/ s/^version = "\(.*\)"$/\1/p' Cargo.toml)
tar --extract --touch --strip-components 1 --directory "$work/crate" \
    --file "target/crate/package/codex-responses-api-proxy-$version.crate"
target=$PWD/target/crate
(cd "$work/crate" && cargo check --quiet --locked --all-targets --target-dir "$target") ||
    fail "the crate or its own tests do not compile"

# That it is installed counts here, not how it is optimised.
cargo install --quiet --locked --debug --path . --root "$work/installed" --target-dir "$target"
"$work/installed/bin/codex-responses-api-proxy" --version
echo "crate: ok"
