#!/usr/bin/env bash
# The real Codex CLI, talking through the relay to a stub upstream over TLS.

. "$(dirname "$0")/common.sh"
npm_install "$codex_cli"
codex=$modules/.bin/codex
# Commands in README and docs that run Codex.
recipes=4
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

# Every command of README and docs that runs Codex, each in a file of its own, as it is written there:
# in a shell, also of a workflow; and as the command of a container.
mkdir "$work/recipes" "$work/bin"
awk -v folder="$work/recipes" '
    /^ *command: \[codex, exec,/ {
        # A list of YAML in which each item is a word, or in quotes of either kind.
        sub(/^ *command: \[/, ""); sub(/\]$/, ""); gsub(/, /, " ")
        print > (folder "/" ++n)
        next
    }
    /codex exec / && !/`/ { inside = 1; n++ }
    inside { print > (folder "/" n); if (!/\\$/) inside = 0 }' README.md docs/*.md
[ "$(ls "$work/recipes" | wc -l)" -eq "$recipes" ] || fail "another number of recipes: $(ls "$work/recipes")"
# What differs here: the port, the file of the token, the user, and that the folder is no repository.
printf '#!/bin/sh\nshift\nexec timeout 60 "%s" exec --skip-git-repo-check "$@" </dev/null\n' "$codex" >"$work/bin/codex"
printf '#!/bin/sh\n[ "$1 $2 $3" = "-H -u agent" ] && shift 3 && exec "$@"\n' >"$work/bin/sudo"
chmod +x "$work/bin"/*

# recipe FILE: as it stands in the documentation.
recipe() {
    local name=recipe-${1##*/}
    mkdir -p "$work/home-$name/work"
    sed -i "s|127.0.0.1:8080|127.0.0.1:$port|; s|/run/agent-token|$work/token|" "$1"
    (cd "$work/home-$name/work" && unset OPENAI_API_KEY RELAY_TOKEN && export PORT=$port &&
        HOME=$work/home-$name CODEX_HOME=$work/home-$name PATH=$work/bin:$PATH sh -e "$1") \
        >"$work/$name.out" 2>"$work/$name.err.out" || {
        cat "$1" "$work/$name.err.out" >&2
        fail "this recipe ended with an error"
    }
    grep -q 'Hello from behind the relay.' "$work/$name.out" || { cat "$1" >&2; fail "no response was printed"; }
}

# With the built-in provider, another base URL, and a key that is none. It tries a WebSocket, is told 426
# and falls back to POST at once.
count=0
for file in $(grep -L RELAY_TOKEN "$work/recipes"/*); do
    recipe "$file"
    count=$((count + 1))
    wait_for "$work/relay.log" '"status":426'
    [ "$(grep -c '"status":426' "$work/relay.log")" -eq $count ] || fail "the 426 did not settle it"
done

run plain
# So does another provider that supports them.
run websocket ', supports_websockets=true'
timeout 20 bash -c 'until [ "$(grep -c "\"status\":426" "$1")" -gt "$2" ]; do sleep 0.02; done' _ \
    "$work/relay.log" "$count"
[ "$(grep -c '"status":426' "$work/relay.log")" -eq $((count + 1)) ] || fail "the 426 did not settle it"
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
for file in $(grep -l RELAY_TOKEN "$work/recipes"/*); do recipe "$file"; done
check_key
! grep -qF "$RELAY_TOKEN" "$work/upstream.log" || fail "the token reached the upstream"
curl -fsS -H "Authorization: Bearer $RELAY_TOKEN" "http://127.0.0.1:$port/shutdown"
wait_for "$work/guarded.log" '"route":"shutdown"'
echo "codex: ok"
