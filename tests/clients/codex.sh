#!/usr/bin/env bash
# The real Codex CLI, talking through the relay to a stub upstream over TLS.

. "$(dirname "$0")/common.sh"
npm_install "$codex_cli"
codex=$modules/.bin/codex
start

# run NAME [PROVIDER OPTIONS]
run() {
    mkdir "$work/home-$1" "$work/empty-$1"
    (cd "$work/empty-$1" && CODEX_HOME="$work/home-$1" timeout 60 "$codex" exec \
        --skip-git-repo-check -c model_provider=p -c \
        "model_providers.p={ name='P', base_url='http://127.0.0.1:$port/v1', wire_api='responses'${2-} }" \
        'hi' </dev/null) >"$work/$1.out" 2>"$work/$1.err.out" || {
        cat "$work/$1.err.out" >&2
        fail "codex exec ($1) ended with $?"
    }
    grep -q 'Hello from behind the relay.' "$work/$1.out" || fail "$1: the answer was not printed"
}

run plain
# A provider that tries WebSockets is told 426 and falls back to POST at once.
run websocket ', supports_websockets=true'
wait_for "$work/relay.log" '"status":426'
[ "$(grep -c '"status":426' "$work/relay.log")" -eq 1 ] || fail "the 426 did not settle it"
curl -fsS "http://127.0.0.1:$port/shutdown"
wait_for "$work/relay.log" '"route":"shutdown"'

# For one user, who has to show a token: what env_key is for.
RELAY_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export RELAY_TOKEN
printf '%s\n' "$RELAY_TOKEN" >"$work/token"
relay guarded --allow-uid "$(id -u)" --client-token-file "$work/token"
[ "$(curl -s -o "$work/401.out" -w '%{http_code}' -d '{}' "http://127.0.0.1:$port/v1/responses")" = 401 ] ||
    fail "served without the token"
run token ", env_key='RELAY_TOKEN'"
check_key
! grep -qF "$RELAY_TOKEN" "$work/upstream.log" || fail "the token reached the upstream"
curl -fsS "http://127.0.0.1:$port/shutdown"
wait_for "$work/guarded.log" '"route":"shutdown"'
echo "codex: ok"
