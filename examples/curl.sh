#!/bin/sh
# A line of a bot with curl, over the relay's Unix socket: on disk when curl returns 0.
#
#   RELAY_SOCKET=/run/connect-relay/relay.sock CONNECTION_TOKEN=… CONTACT_ID=… examples/curl.sh 'Hello!' greeting-1
#
# --fail-with-body makes an error an exit code and keeps its text; the token comes from a file descriptor, because what
# stands in argv can be read by every user of the machine.
set -eu
: "${RELAY_SOCKET:=/run/connect-relay/relay.sock}"

# JSON by printf: right for plain words alone. Quotes, backslashes and line ends need jq or a program.
printf '{"ContentType": "text/plain", "Content": "%s", "ClientToken": "%s"}' "$1" "$2" |
    curl --silent --show-error --fail-with-body --max-time 15 \
        --unix-socket "$RELAY_SOCKET" http://relay/participant/message \
        --header @/dev/fd/3 --data-binary @- 3<<END
X-Amz-Bearer: $CONNECTION_TOKEN
Relay-Conversation: $CONTACT_ID/bot
Content-Type: application/json
END
echo
