// An example bot, Node.js without packages: for each chat it connects, types, answers, says farewell and leaves.
//
// A contact flow starts the chat and hands its ParticipantToken to the bot:
//
//     POST / {"ContactId": "…", "ParticipantToken": "…"}
//
// The reply comes when everything is on the relay's disk: within milliseconds, whether Connect throttles, is down or well.

import http from "node:http";
import { setTimeout as pause } from "node:timers/promises";

const socketPath = process.env.RELAY_SOCKET ?? "/run/connect-relay/relay.sock";
const TYPING = "application/vnd.amazonaws.connect.event.typing";

const read = async (stream) => Buffer.concat(await stream.toArray()).toString();

/** One request over the relay's Unix socket. */
function once(operation, token, body) {
  return new Promise((resolve, reject) => {
    const headers = { "X-Amz-Bearer": token, "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) };
    const options = { socketPath, path: `/participant/${operation}`, method: "POST", headers, timeout: 30_000 };
    const request = http.request(options, async (reply) => {
      try {
        resolve({ status: reply.statusCode, headers: reply.headers, text: await read(reply) });
      } catch (fault) {
        reject(fault);
      }
    });
    request.on("timeout", () => request.destroy(new Error("no answer")));
    request.on("error", reject);
    request.end(body);
  });
}

/**
 * One operation of the Participant Service; the same again where the relay says 429, 500 or 503, or restarts. That is
 * safe, because what makes a message of it carries a ClientToken: a repeat makes no second one.
 */
async function call(operation, token, body) {
  for (let attempt = 0; attempt < 60; attempt++) {
    const reply = await once(operation, token, JSON.stringify(body)).catch(() => ({ status: 503, headers: {} }));
    if (reply.status < 300) return JSON.parse(reply.text || "{}");
    if (![429, 500, 503].includes(reply.status)) throw new Error(`${operation}: ${reply.status} ${reply.text}`);
    await pause(1000 * Number(reply.headers["retry-after"] ?? 1));
  }
  throw new Error(`${operation}: the relay does not take it`);
}

/** One chat from its beginning to its end. What is said goes out in this order, the farewell before the end. */
async function chat(contact, participantToken) {
  const wanted = { Type: ["CONNECTION_CREDENTIALS"], ConnectParticipant: true };
  const token = (await call("connection", participantToken, wanted)).ConnectionCredentials.ConnectionToken;
  await call("event", token, { ContentType: TYPING });
  for (const [name, text] of [["greeting", "Hello, what can I do for you?"], ["farewell", "Goodbye, and thank you."]]) {
    await call("message", token, { ContentType: "text/plain", Content: text, ClientToken: `${contact}-${name}` });
  }
  await call("disconnect", token, { ClientToken: `${contact}-end` });
}

const bot = http.createServer(async (request, reply) => {
  const answer = (status, body) => reply.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
  if (request.method !== "POST") return answer(200, {});
  try {
    const start = JSON.parse(await read(request));
    await chat(start.ContactId, start.ParticipantToken);
    answer(200, {});
  } catch (fault) {
    answer(500, { Error: String(fault) }); // whatever it was: the flow hears it, the bot goes on
  }
});
bot.listen(Number(process.env.PORT ?? 8080), () => console.log(`listening on ${bot.address().port}`));
// When it is asked to stop, it finishes its chats and ends; then the relay, which outlives it, delivers queued messages.
process.on("SIGTERM", () => {
  bot.close();
  bot.closeIdleConnections();
});
