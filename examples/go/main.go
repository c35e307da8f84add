// A bot with the AWS SDK for Go v2, over the relay's Unix socket.
//
//	RELAY_SOCKET=/run/connect-relay/relay.sock PARTICIPANT_TOKEN=… CONTACT_ID=… go run .
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/connectparticipant"
	"github.com/aws/aws-sdk-go-v2/service/connectparticipant/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// newClient returns a client for one chat: its header names the conversation on every call.
func newClient(socket, contact string) *connectparticipant.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	transport := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.DialContext = dial
		t.Proxy = nil // HTTP_PROXY does not apply to the socket
	})
	options := connectparticipant.Options{
		Region:      "eu-west-2",
		Credentials: aws.AnonymousCredentials{}, // the service needs no signature
		HTTPClient:  transport,
		// The URL's host is not used.
		EndpointResolver: connectparticipant.EndpointResolverFromURL("http://relay"),
	}
	return connectparticipant.New(options, connectparticipant.WithAPIOptions(
		smithyhttp.AddHeaderValue("Relay-Conversation", contact+"/bot"),
	))
}

func main() {
	socket := os.Getenv("RELAY_SOCKET")
	if socket == "" {
		socket = "/run/connect-relay/relay.sock"
	}
	ctx := context.Background()
	client := newClient(socket, os.Getenv("CONTACT_ID"))
	connection, err := client.CreateParticipantConnection(ctx, &connectparticipant.CreateParticipantConnectionInput{
		ParticipantToken:   aws.String(os.Getenv("PARTICIPANT_TOKEN")),
		Type:               []types.ConnectionType{types.ConnectionTypeConnectionCredentials},
		ConnectParticipant: aws.Bool(true),
	})
	if err != nil {
		log.Fatal(err)
	}
	token := connection.ConnectionCredentials.ConnectionToken
	for _, message := range [][2]string{{"greeting-1", "Hello!"}, {"farewell-1", "Goodbye!"}} {
		reply, err := client.SendMessage(ctx, &connectparticipant.SendMessageInput{
			ConnectionToken: token,
			ContentType:     aws.String("text/plain"),
			ClientToken:     aws.String(message[0]),
			Content:         aws.String(message[1]),
		})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(message[0], aws.ToString(reply.Id)) // no Id while it is queued
	}
	// It waits for its turn: the farewell is not cut off.
	if _, err := client.DisconnectParticipant(ctx, &connectparticipant.DisconnectParticipantInput{ConnectionToken: token}); err != nil {
		log.Fatal(err)
	}
}
