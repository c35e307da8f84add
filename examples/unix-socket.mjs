// A bot's line with Node.js's own http, over the relay's Unix socket.
//
//   RELAY_SOCKET=/run/connect-relay/relay.sock CONNECTION_TOKEN=… CONTACT_ID=… node examples/unix-socket.mjs
import http from "node:http";

const agent = new http.Agent({ keepAlive: true });

// Resolves to {status, answer}: 202 is on disk, 200 delivered. The same clientToken again is never a second message.
export function say(socketPath, token, contact, content, clientToken, more = {}) {
  const body = JSON.stringify({ ContentType: "text/plain", Content: content, ClientToken: clientToken });
  const headers = {
    "Content-Type": "application/json",
    "Content-Length": Buffer.byteLength(body), // bytes, not body.length
    "X-Amz-Bearer": token,
    "Relay-Conversation": `${contact}/bot`, // what is kept in order
    ...more,
  };
  const path = "/participant/message";
  return new Promise((resolve, reject) => {
    const request = http.request({ socketPath, agent, method: "POST", path, timeout: 10_000, headers });
    request.on("response", async (response) => {
      try {
        let text = "";
        for await (const chunk of response.setEncoding("utf8")) text += chunk;
        resolve({ status: response.statusCode, answer: JSON.parse(text) });
      } catch (error) {
        reject(error);
      }
    });
    // Node only reports a time-out; this code ends the request.
    request.on("timeout", () => request.destroy(new Error("the relay did not answer in time")));
    request.on("error", (error) => {
      // The relay closed a kept connection just when it was used again: one more try, with the same clientToken.
      const closed = request.reusedSocket && ["ECONNRESET", "EPIPE"].includes(error.code);
      if (closed) resolve(say(socketPath, token, contact, content, clientToken, more));
      else reject(error);
    });
    request.end(body);
  });
}

const socket = process.env.RELAY_SOCKET ?? "/run/connect-relay/relay.sock";
const { CONNECTION_TOKEN: token, CONTACT_ID: contact } = process.env;
for (const [content, clientToken, headers] of [
  ["Hello!", "greeting-1", {}],
  ["How can I help?", "question-1", { Prefer: "wait=8" }], // the time-out above must be longer
]) {
  // One after the other: what is said before the last reply has come has no order.
  const { status, answer } = await say(socket, token, contact, content, clientToken, headers);
  console.log(status, JSON.stringify(answer));
  if (status >= 400) process.exitCode = 1;
}
agent.destroy();
