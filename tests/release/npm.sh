#!/usr/bin/env bash
# The npm package of dist/: what is in it, how it installs without scripts and without a network,
# and that its launcher passes stdin, signals and the end on.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=${DIST:-$PWD/dist}
name=codex-responses-api-proxy
work=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
# shellcheck disable=SC2016
wait_for() { timeout 20 bash -c 'until grep -q -- "$2" "$1" 2>/dev/null; do sleep 0.02; done' _ "$1" "$2" ||
    { cat "$1" >&2; fail "no line like '$2'"; }; }
# ends PID: sets $code to its exit code, within 20 s.
ends() {
    timeout 20 tail -f /dev/null --pid "$1" || fail "$1 does not end"
    code=0
    wait "$1" || code=$?
}

version=$(sed -n '0,/^version = "\(.*\)"$/s//\1/p' Cargo.toml)
package=$dist/codex-responses-api-relay-$version.tgz
[ -f "$package" ] || fail "$package is missing; run scripts/release"

# What npm itself would pack of the same files, and nothing that runs at the installation.
mkdir "$work/unpacked"
tar xzf "$package" -C "$work/unpacked" --no-same-owner
(cd "$work/unpacked/package" && npm pack --dry-run --json --ignore-scripts) |
    jq -r '.[0].files[].path' | sort >"$work/npm"
tar tzf "$package" | sed -n 's|^package/\(.*[^/]\)$|\1|p' | sort >"$work/ours"
diff "$work/npm" "$work/ours" || fail "npm would pack other files"
for triple in x86_64-unknown-linux-musl aarch64-unknown-linux-musl; do
    grep -qx "vendor/$triple/$name" "$work/ours" || fail "no program for $triple"
    [ ! -e "$dist/bin/$triple/$name" ] || cmp "$dist/bin/$triple/$name" \
        "$work/unpacked/package/vendor/$triple/$name" || fail "another program for $triple"
done
[ "$(jq -r '[.version, .type, .engines.node, .scripts, .dependencies] | @json' \
    "$work/unpacked/package/package.json")" = "[\"$version\",\"module\",\">=16\",null,null]" ] ||
    fail "package.json"
(cd "$work" && npm pack --silent --ignore-scripts ./unpacked/package >/dev/null)

# Installed offline, with what npm packed too.
export npm_config_cache=$work/cache npm_config_offline=true npm_config_audit=false npm_config_fund=false \
    npm_config_update_notifier=false
for file in "$package" "$work/$(basename "$package")"; do
    rm -rf "$work/prefix"
    npm install --silent --global --ignore-scripts --prefix "$work/prefix" "$file" >/dev/null
    "$work/prefix/bin/$name" --version | grep -q "^$name $version (" || fail "--version"
done
npx --yes --package "$package" "$name" --version | grep -q "^$name $version (" || fail "npx"
run=$work/prefix/bin/$name

# The end is the program's: its exit codes, and its last words.
code=0
"$run" --nonsense 2>"$work/err" || code=$?
[ "$code" -eq 2 ] || fail "exit code $code"
grep -q "invalid option '--nonsense'" "$work/err" || fail "stderr"

# relay: starts one through the launcher; sets $launcher, $pid and $port.
relay() {
    rm -f "$work/info"
    # A shell's background job ignores SIGINT.
    env --default-signal=INT "$run" --server-info "$work/info" --grace 0 2>"$work/log" \
        <<<"sk-of-this-test-0123456789" &
    launcher=$!
    pids+=("$launcher")
    wait_for "$work/info" pid
    pid=$(jq .pid "$work/info")
    pids+=("$pid")
    port=$(jq .port "$work/info")
}
for signal in INT TERM HUP; do
    relay
    [ "$pid" != "$launcher" ] || fail "server-info names the launcher"
    "$run" --probe "$port" >/dev/null || fail "no relay responds"
    if [ "$signal" = HUP ]; then
        # Without a terminal the relay ignores it, so the launcher must go on too.
        kill -HUP "$launcher"
        "$run" --probe "$port" >/dev/null || fail "SIGHUP ended it"
        kill -TERM "$launcher"
    else
        kill "-$signal" "$launcher"
    fi
    ends "$launcher"
    pids=()
    [ "$code" -eq 0 ] || fail "SIG$signal: exit code $code"
    [ ! -e "/proc/$pid" ] || fail "SIG$signal: the program is still there"
done
# A program that is killed: the launcher ends by the same signal, which no shell tells from an exit
# code.
python3 - "$run" "$work/killed" <<'END' || fail "a killed program"
import json, os, signal, subprocess, sys, time
run, info = sys.argv[1:]
launcher = subprocess.Popen([run, "--server-info", info], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
try:
    launcher.stdin.write(b"sk-of-this-test-0123456789\n")
    launcher.stdin.flush()
    end = time.monotonic() + 20
    while not (os.path.exists(info) and os.path.getsize(info)):
        assert time.monotonic() < end, "it does not start"
        time.sleep(0.02)
    os.kill(json.load(open(info))["pid"], signal.SIGKILL)
    assert launcher.wait(20) == -signal.SIGKILL, launcher.returncode
finally:
    launcher.kill()
END
echo "npm: ok"
