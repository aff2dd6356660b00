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

# The recipe of README and docs: the built-in provider, another base URL, and a key that is none.
mkdir "$work/home-recipe" "$work/empty-recipe"
(cd "$work/empty-recipe" && CODEX_HOME="$work/home-recipe" OPENAI_API_KEY=none timeout 60 "$codex" exec \
    --skip-git-repo-check -c openai_base_url="\"http://127.0.0.1:$port/v1\"" 'hi' </dev/null) \
    >"$work/recipe.out" 2>"$work/recipe.err.out" || {
    cat "$work/recipe.err.out" >&2
    fail "codex exec with openai_base_url ended with $?"
}
grep -q 'Hello from behind the relay.' "$work/recipe.out" || fail "recipe: the response was not printed"

# The built-in provider tries a WebSocket, is told 426 and falls back to POST at once.
wait_for "$work/relay.log" '"status":426'
[ "$(grep -c '"status":426' "$work/relay.log")" -eq 1 ] || fail "the 426 did not settle it"

run plain
# So does another provider that supports them.
run websocket ', supports_websockets=true'
timeout 20 bash -c 'until [ "$(grep -c "\"status\":426" "$1")" -ge 2 ]; do sleep 0.02; done' _ "$work/relay.log"
[ "$(grep -c '"status":426' "$work/relay.log")" -eq 2 ] || fail "the 426 did not settle it"
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
curl -fsS -H "Authorization: Bearer $RELAY_TOKEN" "http://127.0.0.1:$port/shutdown"
wait_for "$work/guarded.log" '"route":"shutdown"'
echo "codex: ok"
