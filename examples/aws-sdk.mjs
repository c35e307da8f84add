// A bot with the AWS SDK for JavaScript v3, over the relay's Unix socket.
//
//   (cd examples && npm ci)
//   RELAY_SOCKET=/run/connect-relay/relay.sock PARTICIPANT_TOKEN=… CONTACT_ID=… node examples/aws-sdk.mjs
//
// Without RELAY_SOCKET the client takes its endpoint as usual. Over the relay's TCP port (ingress.tcp) that is
// AWS_ENDPOINT_URL_CONNECTPARTICIPANT=http://127.0.0.1:8480, and nothing of the relay is in the code.
import {
  ConnectParticipantClient,
  CreateParticipantConnectionCommand,
  DisconnectParticipantCommand,
  SendEventCommand,
  SendMessageCommand,
} from "@aws-sdk/client-connectparticipant";

// Any credentials: the SDK signs whatever it sends, and the relay drops the signature. Without them it would ask the
// machine's metadata service and wait for it.
const credentials = { accessKeyId: "none", secretAccessKey: "none" };

// The URL's host is not used. The SDK makes an http.Agent of these options.
const socketPath = process.env.RELAY_SOCKET;
const overSocket = { endpoint: "http://relay", requestHandler: { httpAgent: { socketPath, keepAlive: true } } };

// A client for each chat: the middleware names the conversation on every call, and asks for the outcome.
function clientFor(contact) {
  const client = new ConnectParticipantClient({ region: "eu-west-2", credentials, ...(socketPath && overSocket) });
  client.middlewareStack.add(
    (next) => (args) => {
      args.request.headers["relay-conversation"] = `${contact}/bot`;
      args.request.headers.prefer = "wait=8"; // without it the socket answers 202 as soon as the message is on disk
      return next(args);
    },
    { step: "build", name: "relayConversation" },
  );
  return client;
}

const client = clientFor(process.env.CONTACT_ID);
const { ConnectionCredentials } = await client.send(
  new CreateParticipantConnectionCommand({
    ParticipantToken: process.env.PARTICIPANT_TOKEN,
    Type: ["CONNECTION_CREDENTIALS"],
    ConnectParticipant: true,
  }),
);
const { ConnectionToken } = ConnectionCredentials;
const typing = "application/vnd.amazonaws.connect.event.typing";
await client.send(new SendEventCommand({ ConnectionToken, ContentType: typing }));
for (const [Content, ClientToken] of [["Hello!", "greeting-1"], ["Goodbye!", "farewell-1"]]) {
  const reply = await client.send(
    new SendMessageCommand({ ConnectionToken, ContentType: "text/plain", Content, ClientToken }),
  );
  console.log(reply.$metadata.httpStatusCode, reply.Id ?? "queued"); // no Id while it is queued
}
await client.send(new DisconnectParticipantCommand({ ConnectionToken })); // waits for its turn
client.destroy();
