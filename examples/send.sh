#!/bin/sh
# Lines of a bot from a shell, with the relay's own command: it knows JSON, limits and exit codes.
#
#   RELAY_SOCKET=/run/connect-relay/relay.sock CONNECTION_TOKEN=… CONTACT_ID=… examples/send.sh
#
# CONNECTION_TOKEN is read from the environment (or --connection-token-file), never from argv. It exits 0 once the
# message is on disk; with --wait it comes back with the outcome, or with what is known when the wait is over.
set -eu
: "${RELAY_SOCKET:=/run/connect-relay/relay.sock}"

say() {
    connect-relay send --socket "$RELAY_SOCKET" --conversation "$CONTACT_ID/bot" "$@"
}

say --client-token greeting-1 'Hello!'
printf 'We are open:\n- "weekdays", 9 to 5\n' | say --client-token hours-1 --content-type text/markdown -
say --client-token farewell-1 --wait 20s 'Goodbye!'
