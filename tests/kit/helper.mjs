// Passes calls from stdin to the helper file of examples/, and its replies to stdout: one line of JSON each.
import { createInterface } from "node:readline";

import { Relay } from "./connect-relay.mjs";

const relay = new Relay(JSON.parse(process.argv[2]));

function errorOf({ name, message, clientToken, constructor }) {
  return { Error: name, Class: constructor.name, Message: message, ClientToken: clientToken };
}

createInterface({ input: process.stdin }).on("line", async (line) => {
  const { number, ...call } = JSON.parse(line);
  const reply = await relay.sendMessage(call).catch(errorOf);
  console.log(JSON.stringify({ number, reply }));
});
