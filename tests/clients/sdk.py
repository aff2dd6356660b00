"""What a program that uses OpenAI's SDK for Python sees through the relay. Run by sdk.sh."""

import os
import time

import openai

MESSAGE = "Hello from behind the relay."
client = openai.OpenAI(max_retries=0)


def ask(model="stub", client=client, **more):
    return client.responses.create(model=model, input="hi", **more)


def error(kind, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind, type(error)
        return error
    raise AssertionError(f"no {kind.__name__}")


answer = ask()
assert (answer.status, answer.output_text, answer.usage.total_tokens) == ("completed", MESSAGE, 6)

events = list(ask(stream=True))
assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == MESSAGE
with client.responses.stream(model="stub", input="hi") as stream:
    stream.until_done()
    assert stream.get_final_response().output_text == MESSAGE

# The upstream's errors.
e = error(openai.AuthenticationError, lambda: ask("stub-401"))
assert (e.status_code, e.code, e.type) == (401, "invalid_api_key", "invalid_request_error")
e = error(openai.RateLimitError, lambda: ask("stub-429"))
assert (e.code, e.response.headers["retry-after"]) == ("rate_limit_exceeded", "2")
begin = time.monotonic()
assert ask("stub-busy", client.with_options(max_retries=1)).output_text == MESSAGE
assert time.monotonic() - begin >= 1.9, "Retry-After was not waited for"

# The relay's own.
e = error(openai.PermissionDeniedError, client.models.list)
assert (e.status_code, e.code, e.type) == (403, "route_not_allowed", "proxy_error")
unreachable = client.with_options(base_url=os.environ["UNREACHABLE_BASE_URL"])
e = error(openai.InternalServerError, lambda: ask(client=unreachable))
assert (e.status_code, e.code, e.type) == (502, "upstream_refused", "proxy_error")

# A stream that is broken off: the upstream sees it within 1 s.
def cancelled():
    with open(os.environ["UPSTREAM_LOG"]) as log:
        return log.read().count("aborted")


before = cancelled()
stream = ask("stub-endless", stream=True)
assert next(iter(stream)).type == "response.output_text.delta"
stream.close()
deadline = time.monotonic() + 1
while cancelled() == before:
    assert time.monotonic() < deadline, "the upstream does not see that the client has gone"
    time.sleep(0.02)
print(f"Python SDK {openai.__version__}: ok")
