# Sourced by the scripts beside it: builds and starts the relay and the stub upstream.
# Leaves nothing behind: everything lives in $work, every process is ended on exit.

set -euo pipefail
cd "$(dirname "$0")/../.."

# The clients, each with the version that is tested; installed once, into target/clients.
codex_cli=@openai/codex@0.169.0
openai_python=openai==3.57.0
openai_javascript=openai@7.57.0
node=22.23.3 # for the JavaScript SDK, where the machine's own is older

clients=$PWD/target/clients
mkdir -p "$clients"

# npm_install PACKAGE@VERSION…: sets $modules to the node_modules folder that holds just these.
npm_install() {
    local folder
    folder=$clients/$(printf '%s' "$*" | tr -c 'a-zA-Z0-9.\n-' _)
    [ -e "$folder/done" ] ||
        { npm install --silent --no-audit --no-fund --prefix "$folder" "$@" >/dev/null && touch "$folder/done"; }
    modules=$folder/node_modules
}

work=$(mktemp -d)
pids=()

finish() {
    local code=$?
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    if [ $code -ne 0 ]; then
        echo "--- relay" >&2; cat "$work/relay.log" >&2 || true
        echo "--- upstream" >&2; cat "$work/upstream.log" >&2 || true
    fi
    rm -rf "$work"
    exit $code
}
trap finish EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }

# wait_for FILE PATTERN: until a line of the file matches, for 20 s at most.
wait_for() {
    timeout 20 bash -c 'until grep -q -- "$2" "$1" 2>/dev/null; do sleep 0.02; done' _ "$1" "$2" ||
        fail "no line like '$2' in $(basename "$1")"
}

# start [FLAG…]: the stub upstream and the relay in front of it. Sets $upstream and $port.
start() {
    cargo build --locked --quiet --bins --example stub-upstream
    key="sk-client-test-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
    mkfifo "$work/hold"
    STUB_KEY=$key target/debug/examples/stub-upstream "$work/ca.pem" \
        <"$work/hold" >"$work/upstream.log" 2>&1 &
    pids+=($!)
    exec 9>"$work/hold"
    wait_for "$work/upstream.log" '^[0-9]'
    upstream=https://localhost:$(head -1 "$work/upstream.log")/v1/responses
    relay relay "$@"
}

# relay NAME [FLAG…]: a relay in front of $upstream, its log in NAME.log. Sets $port.
relay() {
    local log=$work/$1.log
    shift
    printf '%s\n' "$key" | target/debug/codex-responses-api-proxy --access-log --http-shutdown \
        --upstream-url "$upstream" --ca-file "$work/ca.pem" "$@" 2>"$log" &
    pids+=($!)
    wait_for "$log" 'listening on'
    port=$(sed -n 's/.*"event":"start".*"port":\([0-9]*\).*/\1/p' "$log")
}

# The upstream saw the relay's key every time, and the key is in nobody's output.
check_key() {
    grep -q 'key=right' "$work/upstream.log" || fail "no request reached the upstream"
    ! grep -q 'key=WRONG' "$work/upstream.log" || fail "a request without the relay's key"
    ! grep -rqF --include='*.log' --include='*.out' -e "$key" "$work" || fail "the key leaked"
}
