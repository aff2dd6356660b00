// What a program that uses OpenAI's SDK for JavaScript sees through the relay. Run by sdk.sh.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import OpenAI from 'openai';

const MESSAGE = 'Hello from behind the relay.';
const client = new OpenAI({ maxRetries: 0 });
const ask = (model = 'stub', more = {}, options = {}) =>
  client.responses.create({ model, input: 'hi', ...more }, options);

async function error(kind, promise) {
  const error = await promise.then(() => undefined, (error) => error);
  assert.equal(error?.constructor, kind);
  return error;
}

const answer = await ask();
assert.deepEqual([answer.status, answer.output_text, answer.usage.total_tokens], ['completed', MESSAGE, 6]);

const events = [];
for await (const event of await ask('stub', { stream: true })) events.push(event);
assert.deepEqual([events.at(0).type, events.at(-1).type], ['response.created', 'response.completed']);
const deltas = events.filter((event) => event.type === 'response.output_text.delta');
assert.equal(deltas.map((event) => event.delta).join(''), MESSAGE);
const whole = await client.responses.stream({ model: 'stub', input: 'hi' }).finalResponse();
assert.equal(whole.output_text, MESSAGE);

// The upstream's errors.
let e = await error(OpenAI.AuthenticationError, ask('stub-401'));
assert.deepEqual([e.status, e.code, e.type], [401, 'invalid_api_key', 'invalid_request_error']);
e = await error(OpenAI.RateLimitError, ask('stub-429'));
assert.deepEqual([e.code, e.headers.get('retry-after')], ['rate_limit_exceeded', '2']);
const begin = performance.now();
assert.equal((await ask('stub-busy', {}, { maxRetries: 1 })).output_text, MESSAGE);
assert(performance.now() - begin >= 1900, 'Retry-After was not waited for');

// The relay's own.
e = await error(OpenAI.PermissionDeniedError, client.models.list());
assert.deepEqual([e.status, e.code, e.type], [403, 'route_not_allowed', 'proxy_error']);
const unreachable = client.withOptions({ baseURL: process.env.UNREACHABLE_BASE_URL });
e = await error(OpenAI.InternalServerError, unreachable.responses.create({ model: 'stub', input: 'hi' }));
assert.deepEqual([e.status, e.code, e.type], [502, 'upstream_refused', 'proxy_error']);

// A stream that is broken off: the upstream sees it within 1 s.
const cancelled = () => readFileSync(process.env.UPSTREAM_LOG, 'utf8').split('aborted').length;
const before = cancelled();
for await (const event of await ask('stub-endless', { stream: true })) {
  assert.equal(event.type, 'response.output_text.delta');
  break;
}
const deadline = performance.now() + 1000;
while (cancelled() === before) {
  assert(performance.now() < deadline, 'the upstream does not see that the client has gone');
  await setTimeout(20);
}
console.log('JavaScript SDK: ok');
