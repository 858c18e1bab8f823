// Prints the output CSV of each completed request: go run ./consumer
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kgo"
)

type event struct {
	ID   string
	Type string
	Data struct{ RequestID, OutputCsvUrl string }
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(or("KAFKA_BROKERS", "127.0.0.1:9092"), ",")...),
		kgo.ConsumerGroup("my-go-program"),
		kgo.ConsumeTopics(or("TOPIC", "shrinkstream.requests")),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return
		}
		if err := fetches.Err(); err != nil {
			log.Fatal(err)
		}
		for _, record := range fetches.Records() {
			if err := onEvent(record.Value); err != nil {
				log.Fatal(err)
			}
		}
		// What is not processed yet is delivered again.
		if err := client.CommitUncommittedOffsets(ctx); err != nil && !errors.Is(err, context.Canceled) {
			log.Fatal(err)
		}
	}
}

func onEvent(value []byte) error {
	var one event
	if err := json.Unmarshal(value, &one); err != nil {
		return err
	}
	// Delivery is at least once. A redelivered event has the same id: write under it, so that a repetition overwrites.
	if one.Type == "shrinkstream.RequestCompleted.v1" {
		fmt.Println(one.ID, one.Data.RequestID, one.Data.OutputCsvUrl)
	}
	return nil
}

func or(name, standard string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return standard
}
