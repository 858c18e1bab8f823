// Receives webhooks and verifies their signature, with the standard library alone: WEBHOOK_SECRET=whsec_… go run ./receiver
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	maxBodyBytes = 1024 * 1024
	maxAge       = 5 * time.Minute
)

func main() {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(os.Getenv("WEBHOOK_SECRET"), "whsec_"))
	if err != nil || len(key) == 0 {
		log.Fatal("WEBHOOK_SECRET is not a whsec_… secret")
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "9000"
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening")
	server := &http.Server{ReadTimeout: 10 * time.Second, Handler: receiver(key)}
	log.Fatal(server.Serve(listener))
}

func receiver(key []byte) http.HandlerFunc {
	return func(response http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(response, request.Body, maxBodyBytes))
		if err != nil || !isGenuine(key, request.Header, body) {
			response.WriteHeader(http.StatusUnauthorized)
			return
		}
		var message struct {
			Type string
			Data struct{ OutputCsvUrl string }
		}
		if err := json.Unmarshal(body, &message); err != nil {
			response.WriteHeader(http.StatusInternalServerError)
			return
		}
		// A message that is sent again has the same webhook-id: ignore one that you know.
		fmt.Println(request.Header.Get("webhook-id"), message.Type, message.Data.OutputCsvUrl)
		response.WriteHeader(http.StatusNoContent)
	}
}

func isGenuine(key []byte, header http.Header, body []byte) bool {
	sent, err := strconv.ParseInt(header.Get("webhook-timestamp"), 10, 64)
	if err != nil || time.Since(time.Unix(sent, 0)).Abs() > maxAge {
		return false
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%d.%s", header.Get("webhook-id"), sent, body)
	expected := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for _, signature := range strings.Fields(header.Get("webhook-signature")) { // several while the secret changes
		if hmac.Equal([]byte(expected), []byte(signature)) {
			return true
		}
	}
	return false
}
