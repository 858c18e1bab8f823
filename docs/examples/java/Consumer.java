// Prints the output CSV of each completed request: java -cp 'libs/*' Consumer.java
// libs: kafka-clients and its dependencies (zstd-jni among them), jackson-databind and its dependencies, an slf4j binding
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

public class Consumer {
    public static void main(String[] arguments) throws Exception {
        Map<String, String> environment = System.getenv();
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", environment.getOrDefault("KAFKA_BROKERS", "127.0.0.1:9092"),
            "group.id", "my-java-program",
            "auto.offset.reset", "earliest",
            "enable.auto.commit", false);
        ObjectMapper json = new ObjectMapper();
        try (var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            Thread main = Thread.currentThread();
            Runtime.getRuntime().addShutdownHook(new Thread(() -> {
                consumer.wakeup();
                try {
                    main.join(10_000);
                } catch (InterruptedException ignored) {
                    Thread.currentThread().interrupt();
                }
            }));
            consumer.subscribe(List.of(environment.getOrDefault("TOPIC", "shrinkstream.requests")));
            while (true) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    onEvent(json.readTree(record.value()));
                }
                consumer.commitSync(); // what is not processed yet is delivered again
            }
        } catch (WakeupException stopped) {
            // The program was told to end.
        }
    }

    static void onEvent(JsonNode event) {
        // Delivery is at least once. A redelivered event has the same id: write under it, so that a repetition overwrites.
        if (event.path("type").asText().equals("shrinkstream.RequestCompleted.v1")) {
            JsonNode data = event.get("data");
            System.out.println(event.get("id").asText() + " " + data.get("requestId").asText() + " " + data.get("outputCsvUrl").asText());
        }
    }
}
