#!/usr/bin/env bash
# @aws-sdk/client-connectparticipant 3.1019.0 twice, with the @smithy packages of 2026-03-28 and of 2026-11-20;
#   Node.js 20.20.2 (20 or newer)
#
# Behaviour: the version of an AWS client does not determine how it retries. Its @smithy dependencies are ranges,
#   and they read Retry-After and x-amz-retry-after. A project whose lock file holds the packages of March and that
#   updates only the client ignores both headers; a new installation of the same client obeys both.
# Seen (delay before the second attempt after a 429):
#   march: client 3.1019.0, @smithy/core 3.23.12: x-amz-retry-after 2500 ms: ignored
#   march: client 3.1019.0, @smithy/core 3.23.12: retry-after 2 s: ignored
#   november: client 3.1019.0, @smithy/core 3.41.0: x-amz-retry-after 2500 ms: obeyed
#   november: client 3.1019.0, @smithy/core 3.41.0: retry-after 2 s: obeyed
# Wrong guess: two machines with the same version of the client react in the same way to a throttle.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
client=@aws-sdk/client-connectparticipant@3.1019.0
install=(npm install --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error)

# March: the packages that this client depends on, as a lock file of that day has them; then the client alone.
mkdir "$work/march" "$work/november"
dependencies=$(npm view "$client" dependencies --json)
echo "{\"private\": true, \"dependencies\": $dependencies}" >"$work/march/package.json"
(cd "$work/march" && "${install[@]}" --before=2026-03-28 && "${install[@]}" "$client") >/dev/null
# November: a new installation.
echo '{"private": true}' >"$work/november/package.json"
(cd "$work/november" && "${install[@]}" --before=2026-11-20 "$client") >/dev/null

cat >"$work/probe.cjs" <<'JS'
const { createServer } = require('node:http');
const { readFileSync } = require('node:fs');
const folder = process.argv[2];
const load = name => `${folder}/node_modules/${name}`;
const version = name => JSON.parse(readFileSync(load(name) + '/package.json')).version;
const { ConnectParticipantClient, SendMessageCommand } = require(load('@aws-sdk/client-connectparticipant'));

// Returns the milliseconds between the first attempt, which is throttled, and the second.
async function delay(header, value) {
  const attempts = [];
  const server = createServer((request, response) => {
    request.resume().on('end', () => {
      attempts.push(performance.now());
      const json = { 'content-type': 'application/json' };
      if (attempts.length === 1) {
        response.writeHead(429, { ...json, 'x-amzn-errortype': 'ThrottlingException', [header]: value });
        response.end('{"Message": "slow down"}');
      } else {
        response.writeHead(200, json).end('{"Id": "1"}');
      }
    });
  });
  await new Promise(done => server.listen(0, '127.0.0.1', done));
  const client = new ConnectParticipantClient({
    region: 'us-east-1', endpoint: `http://127.0.0.1:${server.address().port}`,
    credentials: { accessKeyId: 'none', secretAccessKey: 'none' } });
  await client.send(new SendMessageCommand({ ContentType: 'text/plain', Content: 'x', ConnectionToken: 't' }));
  client.destroy();
  server.close();
  server.closeAllConnections();
  return attempts[1] - attempts[0];
}

(async () => {
  const name = folder.split('/').pop();
  const expected = name === 'march' ? 'ignored' : 'obeyed';
  for (const [header, value, unit, least] of [
    ['x-amz-retry-after', '2500', 'ms', 2490], ['retry-after', '2', 's', 1990]]) {
    const seen = await delay(header, value) >= least ? 'obeyed' : 'ignored';
    console.log(`${name}: client ${version('@aws-sdk/client-connectparticipant')}, ` +
      `@smithy/core ${version('@smithy/core')}: ${header} ${value} ${unit}: ${seen}`);
    if (seen !== expected) throw new Error('the behaviour changed');
  }
})();
JS
for installation in march november; do
  timeout 60 node --no-warnings "$work/probe.cjs" "$work/$installation"
done
