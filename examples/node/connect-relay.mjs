// A client of connect-relay for bots in JavaScript. Copy this file into your bot; it needs Node.js 20 and
// @aws-sdk/client-connectparticipant.
//
//   import { Relay, RelayUnavailable } from "./connect-relay.mjs";
//
//   const relay = new Relay({ socketPath: "/run/connect-relay/relay.sock", region: "eu-west-2" });
//   const reply = await relay.sendMessage({ content: "Hello!", connectionToken, conversation: `${contactId}/bot` });
//
// The reply is an object:
//
//   State         "DELIVERED", or "QUEUED": on the relay's disk, and it will be sent
//   Id            Connect's Id of the message; absent while it is queued
//   AbsoluteTime  Connect's time of the message; absent while it is queued
//   ClientToken   the same call with this clientToken is a repeat, and never a second message
//   Direct        true if the message went to Connect without the relay
//
// An error is the exception that the SDK throws for it, such as AccessDeniedException: all are
// ConnectParticipantServiceException. RelayUnavailable means that the message is not acknowledged.
//
// While the relay does not answer, or answers 500 or 503, sendMessage tries again for `retryFor` seconds (10). Then it
// calls Connect directly, with the same ClientToken, but only if the outcome of each earlier message of the
// conversation is known: delivered, or dead. Otherwise a direct message could overtake one that is still in the relay's
// queue, and sendMessage throws RelayUnavailable. A full queue (429) is never bypassed: the direct call would use the
// same quota.
//
// It only sends messages. Connect, type and disconnect with the SDK's client over the same socket (examples/aws-sdk.mjs), with
// the same conversation: a disconnect that goes past the relay cuts off what is queued.
//
// The messages of one conversation go one after the other, in the order of the calls; if one rejects, those that wait
// behind it go on. Without `conversation` the connection token is the conversation: pass one if your bot renews tokens.
// A Relay knows the messages that it sent itself: use one Relay in one process for a chat.
import { randomUUID } from "node:crypto";
import http from "node:http";
import { setTimeout as delay } from "node:timers/promises";

import * as sdk from "@aws-sdk/client-connectparticipant";

const WAIT = 4; // The seconds for which the relay waits for the outcome, before it answers "queued".
const WAITS_MAX = 64; // The calls that may wait at once. A further one is answered as soon as its message is on disk.
// Connect's refusals of one message.
const FINAL = ["ValidationException", "AccessDeniedException", "ConflictException"];

/**
 * The message is not acknowledged within `retryFor`; it may arrive nevertheless. To repeat it, pass `clientToken` of
 * this exception: then it is never a second message.
 */
export class RelayUnavailable extends Error {
  constructor(text, clientToken, cause) {
    super(text, { cause });
    this.name = "RelayUnavailable";
    this.clientToken = clientToken;
  }
}

/** No answer of the relay, or none that can be read. */
class NoAnswer extends Error {}

/**
 * A relay's Unix socket, and Connect itself if the relay is down. The client for the direct calls takes its endpoint as
 * every SDK client does, so AWS_ENDPOINT_URL_CONNECTPARTICIPANT applies. A relay behind that variable refuses a direct
 * call, and sendMessage throws RelayUnavailable.
 */
export class Relay {
  #socketPath;
  #retryFor;
  #connect;
  #chats = new Map(); // Only those that are in use, or have messages whose outcome is unknown.
  #waits = 0;
  #isWatching = false;

  constructor({ socketPath, region, retryFor = 10 }) {
    this.#socketPath = socketPath;
    this.#retryFor = retryFor;
    this.#connect = new sdk.ConnectParticipantClient({
      region,
      credentials: { accessKeyId: "none", secretAccessKey: "none" }, // The service needs no signature.
      requestHandler: { connectionTimeout: 3000, requestTimeout: 5000, throwOnRequestTimeout: true },
    });
    // Connect ignores this header, and a relay refuses its value: a direct call never enters a relay by its TCP port.
    // There the chat would belong to another caller, and the socket would refuse it from then on.
    const refuseRelays = (next) => (args) => {
      args.request.headers["relay-lifetime"] = "0";
      return next(args);
    };
    this.#connect.middlewareStack.add(refuseRelays, { step: "build", name: "refuseRelays" });
  }

  /** Sends a message, and resolves to its state as the head of this file describes it. */
  async sendMessage({ content, connectionToken, clientToken, conversation, contentType = "text/plain" }) {
    const deadline = performance.now() + 1000 * this.#retryFor;
    // The identity of the message; without its content, because it is kept until its outcome is known. With another
    // connection token it is another one: Connect may recognise a ClientToken only together with its token.
    const message = { connectionToken, clientToken: clientToken || randomUUID() };
    message.id = JSON.stringify([message.clientToken, connectionToken]);
    message.headers = { "X-Amz-Bearer": connectionToken };
    if (conversation) message.headers["Relay-Conversation"] = conversation;
    const body = { ContentType: contentType, Content: content, ClientToken: message.clientToken };
    const key = conversation ? `conversation ${conversation}` : `token ${connectionToken}`;
    return this.#inTurn(key, (chat) => this.#send(chat, message, body, deadline));
  }

  async #send(chat, message, body, deadline) {
    let fault, bypass;
    for (let pause = 50; ; pause = Math.min(2 * pause, 1000)) {
      let hint = 0;
      bypass = true;
      try {
        const { status, headers, answer } = await this.#submit(chat, message, body, deadline);
        if (status === 200 || status === 202) return await this.#acknowledged(chat, message, status, answer);
        fault = errorOf(status, headers, answer);
        if (isFinal(status, headers)) {
          await this.#learnIfPossible(chat);
          throw fault;
        }
        bypass = status !== 429;
        hint = Number(headers["x-amz-retry-after"] ?? 0);
      } catch (error) {
        if (!(error instanceof NoAnswer)) throw error;
        fault = error;
      }
      const left = deadline - performance.now();
      if (left <= 0) break;
      await delay(Math.min(left, Math.max(hint, pause)));
    }
    await this.#learnIfPossible(chat, message);
    if (bypass && others(chat, message).length === 0) return this.#sendDirectly(chat, message, body, fault);
    const text = bypass ? ", and the outcome of an earlier message of the conversation is unknown" : "";
    throw this.#unavailable(`the relay did not take the message${text}: ${fault.message}`, message, fault);
  }

  // The relay.

  /** One request to the relay. From the moment of the connection until an answer, the outcome is unknown. */
  async #submit(chat, message, body, deadline) {
    const known = chat.unknown.has(message.id);
    const mayWait = this.#waits < WAITS_MAX;
    const prefer = mayWait ? `wait=${WAIT}` : "respond-async";
    const headers = { ...message.headers, "Content-Type": "application/json", Prefer: prefer };
    const timeout = Math.min(WAIT + 5, Math.max(WAIT + 1, (deadline - performance.now()) / 1000));
    const connected = () => chat.unknown.set(message.id, message);
    const text = JSON.stringify(body);
    if (mayWait) this.#waits += 1;
    const reply = await this.#ask("POST", "/participant/message", headers, text, timeout, connected).finally(() => {
      if (mayWait) this.#waits -= 1;
    });
    const nothingKept = !known && (reply.status === 503 || (reply.status >= 400 && reply.status < 500));
    if (nothingKept || reply.headers["relay-state"] === "DEAD") chat.unknown.delete(message.id);
    return reply;
  }

  /** A request on a connection of its own: a kept one can be closed by the relay just when it is used again. */
  #ask(method, path, headers, text = "", timeout = 5, connected = () => {}) {
    return new Promise((resolve, reject) => {
      const all = { ...headers, "Content-Length": Buffer.byteLength(text) }; // bytes, not text.length
      const request = http.request({ socketPath: this.#socketPath, method, path, headers: all, agent: false });
      const fail = (error) => reject(new NoAnswer(error.message, { cause: error }));
      const timer = setTimeout(() => request.destroy(new Error("the relay did not answer in time")), 1000 * timeout);
      request.on("close", () => clearTimeout(timer));
      request.on("socket", (socket) => socket.on("connect", connected));
      request.on("error", fail);
      request.on("response", async (response) => {
        try {
          let body = "";
          for await (const chunk of response.setEncoding("utf8")) body += chunk;
          const answer = JSON.parse(body);
          if (Object(answer) !== answer || Array.isArray(answer)) throw new Error("the answer is no JSON object");
          resolve({ status: response.statusCode, headers: response.headers, answer });
        } catch (error) {
          fail(error);
        }
      });
      request.end(text);
    });
  }

  async #acknowledged(chat, message, status, answer) {
    if (status === 202) {
      this.#watch();
      return { State: "QUEUED", ClientToken: message.clientToken, Direct: false };
    }
    chat.unknown.delete(message.id);
    await this.#learnIfPossible(chat); // Earlier messages were delivered before this one, unless it is a repeat.
    return delivered(answer, message, false);
  }

  // Connect.

  /** The same message to Connect. Until Connect answers 200 or refuses it, its outcome is unknown. */
  async #sendDirectly(chat, message, body, fault) {
    const inRelay = chat.unknown.has(message.id);
    console.warn(`the relay does not answer: calling Connect directly: ${fault.message}`);
    chat.unknown.set(message.id, message);
    try {
      const command = new sdk.SendMessageCommand({ ...body, ConnectionToken: message.connectionToken });
      const reply = await this.#connect.send(command);
      chat.unknown.delete(message.id);
      return delivered(reply, message, true);
    } catch (error) {
      const isRelay = error.message.startsWith("connect-relay: ");
      const final = FINAL.includes(error.name);
      if ((isRelay || final) && !inRelay) chat.unknown.delete(message.id);
      if (final && !isRelay) throw error;
      const text = isRelay ? "AWS_ENDPOINT_URL_CONNECTPARTICIPANT leads to a relay, not to Connect" : error.message;
      const neither = `neither the relay (${fault.message}) nor Connect took the message: ${text}`;
      throw this.#unavailable(neither, message, error);
    }
  }

  #unavailable(text, message, cause) {
    this.#watch();
    return new RelayUnavailable(text, message.clientToken, cause);
  }

  // Outcomes and order.

  /** The calls of a conversation one after the other, in their order. */
  async #inTurn(key, work) {
    if (!this.#chats.has(key)) this.#chats.set(key, { last: Promise.resolve(), users: 0, unknown: new Map() });
    const chat = this.#chats.get(key);
    chat.users += 1;
    const done = chat.last.then(() => work(chat));
    chat.last = done.catch(() => {});
    try {
      return await done;
    } finally {
      chat.users -= 1;
      if (chat.users === 0 && chat.unknown.size === 0) this.#chats.delete(key);
    }
  }

  /** Asks the relay for outcomes, the latest message first: while it is queued, the others do not matter. */
  async #learn(chat, but) {
    for (const message of others(chat, but).reverse()) {
      const path = `/participant/message/${encodeURIComponent(message.clientToken)}`;
      const { status, answer } = await this.#ask("GET", path, message.headers);
      if (![200, 404, 409].includes(status) || answer.State === "QUEUED") return;
      // Delivered, dead, or not known to the relay: it will not be sent any more.
      chat.unknown.delete(message.id);
    }
  }

  async #learnIfPossible(chat, but) {
    await this.#learn(chat, but).catch(() => {}); // What is not known stays unknown.
    if (chat.unknown.size > 0) this.#watch();
  }

  /** Asks for outcomes until all of them are known. It does not keep the process alive. */
  async #watch() {
    if (this.#isWatching) return;
    this.#isWatching = true;
    // The pause is shorter again when an outcome has become known.
    for (let pause = 1000; ; pause = Math.min(2 * pause, 5000)) {
      await delay(pause, undefined, { ref: false });
      const chats = [...this.#chats].filter(([, chat]) => chat.unknown.size > 0);
      if (chats.length === 0) break;
      try {
        for (const [key, chat] of chats) {
          if (chat.users > 0) continue;
          const before = chat.unknown.size;
          await this.#inTurn(key, (current) => this.#learn(current));
          if (chat.unknown.size < before) pause = 500;
        }
      } catch {
        // The relay is down: the next round asks again.
      }
    }
    this.#isWatching = false;
  }
}

function others(chat, message) {
  return [...chat.unknown.values()].filter((other) => other.id !== message?.id);
}

/** True unless the same request can succeed later. */
function isFinal(status, headers) {
  if (headers["relay-state"] === "DEAD" || headers["x-amzn-errortype"] === "RelayTooLateException") return true;
  return status !== 408 && status !== 429 && status < 500;
}

/** The exception that the SDK throws for this reply. */
function errorOf(status, headers, answer) {
  const name = headers["x-amzn-errortype"] ?? String(status);
  const $metadata = { httpStatusCode: status, requestId: headers["x-amzn-requestid"], attempts: 1, totalRetryDelay: 0 };
  const $fault = status < 500 ? "client" : "server";
  const Kind = /^\w+Exception$/.test(name) && sdk[name] ? sdk[name] : sdk.ConnectParticipantServiceException;
  return new Kind({ name, $fault, $metadata, message: answer.Message ?? "" });
}

function delivered(reply, message, direct) {
  const { Id, AbsoluteTime } = reply;
  return { State: "DELIVERED", Id, AbsoluteTime, ClientToken: message.clientToken, Direct: direct };
}
