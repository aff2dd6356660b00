#!/usr/bin/env bash
# The systemd units of docs/operating.md, as systemd itself reads them.

set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

awk -v folder="$work" '/^```ini$/ { inside = 1; file = folder "/relay-" ++n ".service"; next }
    /^```$/ { inside = 0 } inside { print > file }' docs/operating.md
[ "$(ls "$work" | wc -l)" -eq 2 ]
# The program need not be installed.
sed -i 's|^ExecStart=/usr/local/bin/codex-responses-api-proxy|ExecStart=/bin/true|' "$work"/*.service
said=$(systemd-analyze verify "$work"/*.service 2>&1) || { echo "$said" >&2; exit 1; }
[ -z "$said" ] || { echo "$said" >&2; exit 1; }
echo "units: ok"
