// The outcomes of this user's messages, pushed by the relay over its Unix socket, with Node.js's own http.
//
//   RELAY_SOCKET=/run/connect-relay/relay.sock node examples/outcomes.mjs [LAST_ID]
//
// Prints a line for each event: its id, `delivered` or `dead`, its data. Keep the last id with what you did about the event: with
// it, the stream continues where it was cut, also after a restart of the relay or of this program.
import http from "node:http";
import { setTimeout as pause } from "node:timers/promises";

function open(socketPath, last) {
  const headers = last ? { "Last-Event-ID": last } : {};
  return new Promise((resolve, reject) => {
    // The relay sends a comment every 15 s: a longer silence is a dead connection.
    const request = http.get({ socketPath, path: "/participant/outcomes", headers, timeout: 40_000 }, resolve);
    request.on("timeout", () => request.destroy(new Error("silence")));
    request.on("error", reject);
  });
}

// Yields {id, event, data} for ever; begins now without an id.
export async function* outcomes(socketPath, last) {
  for (;;) {
    const reply = await open(socketPath, last).catch(() => undefined); // the relay restarts
    if ([400, 403, 410].includes(reply?.statusCode)) {
      // 410: outcomes after this id are not kept any more. Ask for the states of the messages that you still miss.
      throw new Error(`${reply.statusCode} ${(await reply.toArray()).join("")}`);
    }
    let text = "";
    try {
      for await (const chunk of reply?.statusCode === 200 ? reply.setEncoding("utf8") : []) {
        const blocks = (text + chunk).split("\n\n");
        text = blocks.pop();
        for (const block of blocks.filter((block) => block.startsWith("id: "))) {
          const [id, event, data] = block.split("\n").map((line) => line.slice(line.indexOf(": ") + 2));
          last = id;
          yield { id, event, data };
        }
      }
    } catch {
      // The connection was cut: the next one continues after the last id.
    }
    reply?.destroy(); // Node keeps the connection of a reply that is not read.
    await pause(500);
  }
}

const socket = process.env.RELAY_SOCKET ?? "/run/connect-relay/relay.sock";
for await (const { id, event, data } of outcomes(socket, process.argv[2])) console.log(id, event, data);
