#!/usr/bin/env bash
# OpenAI's SDKs for Python and JavaScript, talking through the relay to a stub upstream over TLS.

. "$(dirname "$0")/common.sh"
python=$clients/${openai_python/==/-}
[ -e "$python/done" ] || {
    python3 -m venv "$python"
    "$python/bin/pip" install --quiet --disable-pip-version-check "$openai_python"
    touch "$python/done"
}
if [ "$(node -p 'parseInt(process.versions.node)')" -lt "${node%%.*}" ]; then
    npm_install "node-linux-$(node -p process.arch)@$node"
    PATH=$(echo "$modules"/node-linux-*/bin):$PATH
fi
npm_install "$openai_javascript"

start
export UPSTREAM_LOG=$work/upstream.log OPENAI_API_KEY=none OPENAI_BASE_URL=http://127.0.0.1:$port/v1
# A second relay, whose upstream nobody serves.
upstream=https://127.0.0.1:1/v1/responses relay unreachable
export UNREACHABLE_BASE_URL=http://127.0.0.1:$port/v1

"$python/bin/python" tests/clients/sdk.py
ln -s "$modules" "$work/node_modules"
cp tests/clients/sdk.mjs "$work"
node "$work/sdk.mjs"
check_key
echo "sdk: ok"
