#!/usr/bin/env bash
# curl, talking through the relay to a stub upstream over TLS: 10 MB there and back, and a stream
# that is broken off.

. "$(dirname "$0")/common.sh"
start
url=http://127.0.0.1:$port/v1/responses

{ printf '{"model":"stub-echo","input":"' && head -c 7500000 /dev/urandom | base64 -w0 && printf '"}'; } \
    >"$work/body"
curl -fsS --data-binary "@$work/body" -o "$work/body.back" "$url"
cmp "$work/body" "$work/body.back" || fail "the body was changed on its way"
wait_for "$work/upstream.log" "body=$(stat -c %s "$work/body") complete"

curl -sN -d '{"model":"stub-endless","stream":true}' "$url" >"$work/stream.out" &
curl=$!
wait_for "$work/stream.out" response.output_text
kill -9 $curl
wait $curl 2>/dev/null || true
timeout 1 bash -c 'until grep -q aborted "$1"; do sleep 0.02; done' _ "$work/upstream.log" ||
    fail "the upstream does not see within 1 s that the client has gone"

check_key
echo "curl: ok"
