#!/usr/bin/env bash
# The systemd units of docs/operating.md, as systemd itself reads them.

set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A socket stands before its service and has its number, a timer behind it.
awk -v folder="$work" '/^```ini$/ { inside = 1; file = ""; next }
    /^```$/ { inside = 0 }
    inside && /^# .*\.socket$/ { file = folder "/relay-" n + 1 ".socket" }
    inside && /^# .*\.timer$/ { file = folder "/relay-" n ".timer" }
    inside && /^# .*\.service$/ { file = folder "/relay-" ++n ".service" }
    inside { print > file }' docs/operating.md
[ "$(ls "$work" | wc -l)" -eq 7 ]
# The name by which another unit wants it.
sed -i "s|^Wants=codex-relay-key.service|Wants=$(cd "$work" && basename "$(grep -l oneshot ./*.service)")|" \
    "$work"/*.service
# The program need not be installed.
sed -i 's|^ExecStart=/usr/local/bin/codex-responses-api-proxy|ExecStart=/bin/true|' "$work"/*.service
said=$(systemd-analyze verify "$work"/* 2>&1) || { echo "$said" >&2; exit 1; }
[ -z "$said" ] || { echo "$said" >&2; exit 1; }
echo "units: ok"
