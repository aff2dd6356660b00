#!/usr/bin/env bash
# Ends the relay of this job, if one runs.

# shellcheck source=scripts/action/common.sh
. "${0%/*}/common.sh"

stop() {
    local info=$1 pid port
    pid=$(number pid "$info")
    port=$(number port "$info")
    if [ -z "$pid" ]; then
        return
    fi
    # The pid may belong to another process by now.
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != "${NAME:0:15}" ]; then
        echo "the relay $pid has ended"
        return
    fi
    # codex-action removes sudo. A relay with --http-shutdown can then still be stopped by HTTP.
    kill "$pid" 2>/dev/null || as_root kill "$pid" 2>/dev/null ||
        curl --fail --silent --noproxy '*' --max-time 5 "http://127.0.0.1:$port/shutdown" ||
        fail "relay $pid cannot be stopped: there is no sudo any more, and no --http-shutdown among its flags"
    for _ in {1..200}; do
        if [ ! -s "$info" ] && [ ! -e "/proc/$pid" ]; then
            echo "relay $pid is stopped"
            return
        fi
        sleep 0.05
    done
    fail "relay $pid is still there after 10 s"
}

while read -r info; do
    [ ! -s "$info" ] || stop "$info"
done < <(server_infos)
[ ! -f "$STATE/relay.log" ] || cat "$STATE/relay.log"
